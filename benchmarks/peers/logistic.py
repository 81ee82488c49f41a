"""One L2 penalty per coordinate of a logistic regression, learned: mlox beside Betty.

All 500 rows are one batch. The penalties have a prior, so that there is a direct
gradient, against which a wrong scale of the other one shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from _comparison import Comparison, Part
from peers._ways import by_hand, by_hand_on_arrays, by_run, from_cache

ROWS, COLUMNS, LOWER_RATE = 500, 20, 0.5
# What Betty's configuration holds for each method, with which mlox does the same.
METHODS = {
    "DARTS": {"type": "darts", "darts_alpha": 0.01},
    "CG 1": {"type": "cg", "cg_iterations": 1},
    "Neumann 3": {
        "type": "neumann",
        "neumann_iterations": 3,
        "neumann_alpha": LOWER_RATE,
    },
}
# The upper steps of one sample, by the lower steps of each.
LENGTHS = {1: 500, 10: 200, 100: 50}
CYCLES = 50


def given() -> dict[str, np.ndarray]:
    """Draw rows, labels by a noisy margin, and where both levels start."""
    generator = np.random.default_rng(0)
    truth = generator.normal(size=COLUMNS) * (np.arange(COLUMNS) < COLUMNS // 2)
    found = {
        "lower params/w": np.zeros(COLUMNS, np.float32),
        "upper params/penalty": np.full(COLUMNS, -3.0, np.float32),
    }
    for name in ("lower", "upper"):
        x = generator.normal(size=(1, ROWS, COLUMNS))
        margin = x @ truth + 2 * generator.normal(size=(1, ROWS))
        found[f"{name} batches/x"] = np.float32(x)
        found[f"{name} batches/y"] = np.float32(np.sign(margin))
    return found


def comparisons() -> Iterator[Comparison]:
    """List the methods and lengths, with many cycles in a dispatch and with one."""
    for unroll, length in LENGTHS.items():
        for method, betty in METHODS.items():
            yield _comparison(method, betty, unroll, length, CYCLES)
        yield _comparison("DARTS", METHODS["DARTS"], unroll, length, 1)


def _comparison(
    method: str, betty: Mapping[str, Any], unroll: int, length: int, cycles: int
) -> Comparison:
    amount = "one cycle" if cycles == 1 else f"{cycles} cycles"
    return Comparison(
        group="Penalties of a logistic regression",
        job=f"{method}, {unroll} lower steps, {amount} per dispatch",
        given=given,
        settings={
            "model": "logistic",
            "unroll": unroll,
            "betty": betty,
            "cycles": cycles,
            "loops": True,
            "lower rate": LOWER_RATE,
            "upper rate": 5.0,
            "prior": 1e-4,
        },
        parts=tuple(_parts(unroll, cycles)),
        steps=50,
        tolerance=1e-4,
        length=length,
        quick=method == "DARTS" and unroll == 10,
    )


def _parts(unroll: int, cycles: int) -> Iterator[Part]:
    mlox, hand = Part("mlox", "jax", "peers.logistic_mlox"), "peers.logistic_hand"
    yield mlox
    if unroll == 1 and cycles > 1:
        yield from_cache(mlox)
    yield from (by_hand(hand), by_hand_on_arrays(hand), by_run(mlox))
    at_least = None if cycles == 1 else 25.0
    yield Part("Betty", "betty", "peers.logistic_betty", at_least=at_least)


COMPARISONS = tuple(comparisons())
