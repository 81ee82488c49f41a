"""Hypergradients through 16 to 4096 inner steps, beside TorchOpt, higher and by hand.

Weights for 64 examples, learned through the steps of a network of 7,000 parameters.
Each upper step goes on from where the inner loop before it has ended.
"""

from __future__ import annotations

import functools
from typing import Any

from _comparison import Comparison, Part
from peers import _long

MLOX = "peers.long_unrolls_mlox"
HAND = "peers.long_unrolls_hand"
TORCHOPT = Part("TorchOpt", "torchopt", "peers.long_unrolls_torchopt")
HIGHER = Part("higher", "higher", "peers.long_unrolls_higher")


def compare(
    inner: int, name: str, segments: list[int], *others: Part, **more: Any
) -> Comparison:
    """Return a comparison; `segments` are those in which mlox cuts the steps."""
    nested, depth = {"segments": segments}, len(segments)
    parts = (
        Part("mlox", "jax", MLOX),
        Part(f"by hand, {depth} nested scans", "jax", HAND, nested, at_most=1.05),
        Part("by hand, one scan", "jax", HAND, remark="stores all steps"),
        *others,
    )
    options = {
        "steps": 2,
        "tolerance": 1e-3,
        "length": max(1, 512 // inner),
        "quick": inner == 256 and name == "SGD",
        **more,
    }
    return Comparison(
        group="Long unrolls",
        job=f"{inner} steps of {name}",
        given=functools.partial(_long.draw, inner),
        settings={
            "adam": name == "Adam",
            "rate": 1e-3 if name == "Adam" else 0.05,
            "upper_rate": 10.0,
        },
        parts=parts,
        **options,
    )


BUDGET = Part(
    "mlox, memory=2 MiB", "jax", MLOX, {"memory": 2**21}, remark="a budget in bytes"
)
COMPARISONS = (
    compare(16, "SGD", [4, 4], TORCHOPT, HIGHER),
    compare(256, "SGD", [16, 16], TORCHOPT, HIGHER),
    compare(256, "Adam", [16, 16], TORCHOPT),
    compare(1024, "SGD", [8, 8, 16], TORCHOPT, HIGHER),
    compare(4096, "SGD", [16, 16, 16], BUDGET, TORCHOPT, HIGHER, steps=1),
)
