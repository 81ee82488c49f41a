"""Data attribution: d loss of a query / d the weights of examples, through a training.

One upper step is the derivative for one query; the queries take turns. The table of
benchmarks/attribution.py says what such derivatives are worth.
"""

from __future__ import annotations

import functools

from _comparison import Comparison, Part
from peers import _classifier

PARTS = (
    Part("mlox", "jax", "peers.attribution_mlox"),
    Part("by hand", "jax", "peers.attribution_hand", at_most=1.05),
    Part("higher", "higher", "peers.attribution_higher"),
    Part("TorchOpt", "torchopt", "peers.attribution_torchopt"),
)
# higher has no eps_root, and adds eps elsewhere: both are too small to matter.
ADAM = {"adam": {"learning_rate": 3e-3, "eps": 1e-12}, "eps_root": 1e-24}


def comparison(
    sizes: tuple[int, ...], rows: int, batch: int, steps: int, length: int, quick: bool
) -> Comparison:
    draw = functools.partial(_classifier.draw, sizes, rows=rows, queries=5, judged=100)
    name = "-".join(map(str, sizes))
    return Comparison(
        group="Data attribution",
        job=f"MLP {name}, {steps} steps of Adam on {batch} of {rows} examples",
        given=functools.partial(draw, batch=batch, steps=steps),
        settings=ADAM,
        parts=PARTS,
        steps=2,
        tolerance=2e-3,
        length=length,
        quick=quick,
    )


COMPARISONS = (
    comparison((64, 32, 10), rows=500, batch=50, steps=40, length=4, quick=True),
    comparison((784, 64, 10), rows=4000, batch=100, steps=100, length=1, quick=False),
)
