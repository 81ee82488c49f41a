"""A learned schedule: one learning rate per step, by the validation loss at the end.

Each upper step is a training with momentum from the same start on the same batches, the
derivative of the validation loss after it with respect to the logarithms of all rates,
and a step of Adam on these.
"""

from __future__ import annotations

import functools

from _comparison import Comparison, Part
from peers import _classifier

PARTS = (
    Part("mlox", "jax", "peers.schedule_mlox"),
    Part("by hand", "jax", "peers.schedule_hand", at_most=1.05),
    Part("higher", "higher", "peers.schedule_higher"),
    Part("TorchOpt", "torchopt", "peers.schedule_torchopt"),
)


def comparison(
    sizes: tuple[int, ...], batch: int, steps: int, length: int, quick: bool
) -> Comparison:
    draw = functools.partial(_classifier.draw, sizes, rows=1000, queries=1, judged=200)
    name = "-".join(map(str, sizes))
    return Comparison(
        group="Learned schedule",
        job=f"MLP {name}, {steps} steps on {batch} examples",
        given=functools.partial(draw, batch=batch, steps=steps),
        settings={"first rate": 0.1, "momentum": 0.9, "outer rate": 0.05},
        parts=PARTS,
        steps=5,
        tolerance=1e-3,
        length=length,
        quick=quick,
    )


COMPARISONS = (
    comparison((64, 64, 10), batch=100, steps=50, length=4, quick=True),
    comparison((784, 128, 10), batch=100, steps=100, length=1, quick=False),
)
