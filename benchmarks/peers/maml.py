"""MAML on sinusoids, one task and 32: beside TorchOpt, higher, and by hand.

Five unrolled steps of SGD from a learned start, Adam on the start, and a batch of tasks
for each upper step. TorchOpt and higher loop over tasks, as their documentation has it;
TorchOpt's functional optimizers also run under `torch.func.vmap`.
"""

from __future__ import annotations

import functools
from typing import Any

from _comparison import Comparison, Part
from peers import _sinusoids
from peers._ways import by_hand, by_hand_on_arrays

SETTINGS = {"inner_steps": 5, "inner_rate": 0.01, "outer_rate": 1e-3}
MLOX = Part("mlox", "jax", "peers.maml_mlox")
HAND = "peers.maml_hand"
BY_HAND, BARE = by_hand(HAND), by_hand_on_arrays(HAND)
TORCHOPT = Part(
    "TorchOpt, loop", "torchopt", "peers.maml_torchopt", remark="as its tutorial"
)
VMAPPED = Part(
    "TorchOpt, vmap",
    "torchopt",
    "peers.maml_torchopt",
    {"vmap": True},
    remark="functional optimizer in torch.func.vmap",
)
HIGHER = Part("higher", "higher", "peers.maml_higher")
TARGET = 40.0
"""How much longer TorchOpt's loop over 32 tasks must take."""


def compare(
    tasks: int, parts: tuple[Part, ...], length: int, **more: Any
) -> Comparison:
    """Return a comparison; `dispatch` are the upper steps in each call of a program."""
    settings = {**SETTINGS, "tasks": tasks, **more}
    each = f", {more['dispatch']} steps per dispatch" if more else ""
    return Comparison(
        group="MAML",
        job=f"{tasks} task{'s' * (tasks > 1)}{each}",
        given=functools.partial(_sinusoids.draw, tasks),
        settings=settings,
        parts=parts,
        steps=_sinusoids.BATCHES,
        tolerance=1e-4,
        length=length,
        quick=tasks > 1 and not more,
    )


LOOP = TORCHOPT._replace(at_least=TARGET)
COMPARISONS = (
    compare(1, (MLOX, BY_HAND, BARE, TORCHOPT, VMAPPED, HIGHER), 40),
    compare(1, (MLOX, BY_HAND, TORCHOPT), 50, dispatch=10),
    compare(32, (MLOX, BY_HAND, LOOP, VMAPPED, HIGHER), 5),
    compare(32, (MLOX, BY_HAND, LOOP, VMAPPED), 10, dispatch=10),
)
