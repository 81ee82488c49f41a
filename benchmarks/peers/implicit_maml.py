"""Implicit MAML on sinusoids, one task and 32: beside TorchOpt, jaxopt, and by hand.

16 steps of SGD on a loss with a pull towards a learned start, 5 conjugate gradients for
the adjoint of each task, and Adam on the start. TorchOpt loops over tasks: its module
for implicit gradients cannot be mapped.
"""

from __future__ import annotations

import functools
from typing import Any

from _comparison import Comparison, Part
from peers import _sinusoids
from peers._ways import by_hand, by_hand_on_arrays

# With a weaker pull the matrices of some tasks are indefinite, and conjugate gradients
# magnify rounding errors: programs in float32 no longer agree.
SETTINGS = {
    "inner_steps": 16,
    "inner_rate": 0.01,
    "outer_rate": 1e-3,
    "strength": 10.0,
    "products": 5,
}
MLOX = Part("mlox", "jax", "peers.implicit_maml_mlox")
HAND = "peers.implicit_maml_hand"
BY_HAND, BARE = by_hand(HAND), by_hand_on_arrays(HAND)
TORCHOPT = Part(
    "TorchOpt, loop",
    "torchopt",
    "peers.implicit_maml_torchopt",
    remark="one more product: of its guess, zero",
)
LOOP = TORCHOPT._replace(at_least=40.0)
JAXOPT = Part(
    "jaxopt",
    "jaxopt",
    "peers.implicit_maml_jaxopt",
    at_most=1.02,
    remark="without losses of the inner steps, and a report of the solver",
)


def compare(
    tasks: int, parts: tuple[Part, ...], length: int, **more: Any
) -> Comparison:
    """Return a comparison; `silent` leaves out what jaxopt does not return."""
    each = f", {more['dispatch']} steps per dispatch" if "dispatch" in more else ""
    without = ", no metrics of the lower" if "silent" in more else ""
    return Comparison(
        group="Implicit MAML",
        job=f"{tasks} task{'s' * (tasks > 1)}{each}{without}",
        given=functools.partial(_sinusoids.draw, tasks),
        settings={**SETTINGS, "tasks": tasks, **more},
        parts=parts,
        steps=_sinusoids.BATCHES,
        tolerance=1e-3,
        length=length,
        quick=tasks > 1 and not more,
    )


SILENT = MLOX._replace(environment="jaxopt")
COMPARISONS = (
    compare(1, (MLOX, BY_HAND, BARE, TORCHOPT), 10),
    compare(1, (SILENT, JAXOPT), 50, dispatch=10, silent=True),
    compare(32, (MLOX, BY_HAND, LOOP), 2),
    compare(32, (SILENT, JAXOPT), 50, dispatch=10, silent=True),
)
