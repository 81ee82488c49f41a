"""mlox beside Betty on the same card, in float32, where PyTorch and Betty are there.

The sides are those of peers/reweighting.py, each in a process of its own, as JAX and
PyTorch bring their own CUDA. Betty takes its batches from the device.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _comparison import Comparison, Part
from _side import Side

from on_accelerator.parts import Place, Row, Rows

UNROLL, STEPS, SAMPLES = 5, 3, 5
AGREEMENT = 1e-3


def rows(place: Place) -> Rows:
    """Return a row for each job on each side; mlox first, whose outcome is kept."""
    if missing := [n for n in ("torch", "betty") if not importlib.util.find_spec(n)]:
        return {"all jobs": lambda: {"skipped": f"{' and '.join(missing)}: not there"}}
    return {
        f"{one.job}, {part.name}": partial(measure, one, part, place.folder)
        for one in jobs()
        for part in sides(one)
    }


def jobs() -> Iterator[Comparison]:
    """Yield the comparisons with long windows, and the transformer."""
    for one in importlib.import_module("peers.reweighting").COMPARISONS:
        if one.settings["unroll"] == UNROLL or one.settings["model"] == "transformer":
            yield one


def sides(one: Comparison) -> tuple[Part, Part]:
    """Return mlox and Betty among the sides of a comparison."""
    (betty,) = (part for part in one.parts if part.environment == "betty")
    return one.parts[0], betty


def measure(one: Comparison, part: Part, folder: Path) -> Row:
    """Return the seconds of a step of the upper, and how the outcomes differ.

    Raises:
        ArithmeticError: If they differ too much.
    """
    build = importlib.import_module(part.module).build
    torch = importlib.import_module("torch") if part.environment == "betty" else None
    if torch and not torch.cuda.is_available():
        return {"skipped": "PyTorch finds no CUDA"}
    # On CPU Betty is told "cpu"; "default" takes the card.
    settings = {**one.settings, **part.settings, "strategy": "default"}
    with torch.device("cuda") if torch else in_float32():
        side: Side = build(one.given(), settings)
    finish = torch.cuda.synchronize if torch else lambda: None
    cycles = settings.get("cycles", 1)
    side.advance(STEPS * cycles)
    mine, path = (
        dict(side.outcome()),
        folder / f"{one.job} outcome.npz".replace("/", " "),
    )
    row: Row = {"step": timed(side, max(one.length, cycles), finish)}
    if not torch:
        np.savez(path, **mine)
        return row
    with np.load(path) as theirs:
        row["difference"] = max(difference(x, theirs[n]) for n, x in mine.items())
    if not row["difference"] <= AGREEMENT:
        raise ArithmeticError(f"the sides differ by {row['difference']:.1e}")
    return row


def in_float32() -> contextlib.AbstractContextManager[Any]:
    """Let JAX multiply as PyTorch does by default."""
    return importlib.import_module("jax").default_matmul_precision("highest")


def timed(side: Side, steps: int, finish: Callable[[], Any]) -> float:
    """Return the median seconds of a step."""
    found = []
    for _ in range(SAMPLES):
        begun = time.perf_counter()
        side.advance(steps)
        finish()
        found.append((time.perf_counter() - begun) / steps)
    return statistics.median(found)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest entry."""
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))
