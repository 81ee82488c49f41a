"""Sides of a comparison beside each other: they must agree first, then they are timed.

Every environment has a process of its own, all on one core: never do two of them run at
once. What fails is a row that says why, and the others go on.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _comparison import Comparison, Part
from _worker import Worker

Row = dict[str, Any]
PythonOf = Callable[[str], Path]
# A block of this size or more goes back to the system when it is freed, so that the
# peak of resident memory is that of what a program uses.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}


class Amounts(NamedTuple):
    """How much is measured.

    Attributes:
        rounds: The least number of samples of each side.
        most: The largest.
        seconds: Between them samples are taken for so long.
        patience: The seconds in which a process must have carried out an order.
    """

    rounds: int = 9
    most: int = 25
    seconds: float = 10.0
    patience: float = 300.0


FULL, QUICK = Amounts(), Amounts(rounds=5, most=9, seconds=2.0, patience=120.0)


class Running(NamedTuple):
    """A side that has been built in a process."""

    worker: Worker
    number: int

    def order(self, verb: str, seconds: float, **given: Any) -> dict[str, Any]:
        return self.worker.order(verb, seconds, side=self.number, **given)


def duel(comparison: Comparison, python_of: PythonOf, amounts: Amounts) -> dict:
    """Return what is found of a comparison, a row for each side."""
    rows = [_row(part) for part in comparison.parts]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        sides = _built(comparison, rows, python_of, amounts, folder, stack)
        _agree(comparison, rows, sides, amounts, folder)
        _alternate(comparison, rows, sides, amounts)
        stack.close()  # one process at a time, from here on
        for i in sides:
            with failing(rows[i]):
                rows[i]["memory"] = _memory(comparison, i, python_of, amounts, folder)
    sizes = {"steps": comparison.steps, "length": comparison.length}
    names = {"group": comparison.group, "job": comparison.job}
    return {**names, **sizes, "tolerance": comparison.tolerance, "sides": rows}


@contextlib.contextmanager
def failing(row: Row, *others: Row) -> Iterator[None]:
    """Note in a row why what is done for it has failed, and go on."""
    try:
        yield
    except Exception as error:
        name = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
        text = f"{name}{error}".splitlines()[0][:300]
        for one in (row, *others):
            one["failed"] = text


def difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """Return the largest difference, relative to the largest entry of each array.

    Raises:
        FloatingPointError: If an entry is not finite.
        ValueError: If they are not the same arrays.
    """
    if {k: v.shape for k, v in found.items()} != {
        k: v.shape for k, v in expected.items()
    }:
        raise ValueError(f"outcomes are {sorted(found)}, not {sorted(expected)}")
    worst = 0.0
    for name, array in found.items():
        if not (np.isfinite(array).all() and np.isfinite(expected[name]).all()):
            raise FloatingPointError(f"{name!r} is not finite")
        scale = np.abs(expected[name]).max() or 1.0
        worst = max(worst, float(np.abs(array - expected[name]).max() / scale))
    return worst


def _row(part: Part) -> Row:
    names = {"name": part.name, "environment": part.environment}
    targets = {"at_most": part.at_most, "at_least": part.at_least}
    return {**names, **targets, "remark": part.remark, "failed": None}


def _given(comparison: Comparison, part: Part, folder: Path) -> str:
    """Write what a side is given, and return the file."""
    settings = json.dumps({**comparison.settings, **part.settings})
    path = folder / f"given_{comparison.parts.index(part)}.npz"
    np.savez(path, settings=settings, **comparison.given())
    return str(path)


def _built(
    comparison: Comparison,
    rows: Sequence[Row],
    python_of: PythonOf,
    amounts: Amounts,
    folder: Path,
    stack: contextlib.ExitStack,
) -> dict[int, Running]:
    """Build the sides; return those that have not failed."""
    workers: dict[str, Worker] = {}
    sides: dict[int, Running] = {}
    for i, (part, row) in enumerate(zip(comparison.parts, rows, strict=True)):
        with failing(row):
            worker = workers.get(part.environment)
            if worker is None or worker.process.poll() is not None:
                worker = stack.enter_context(Worker(python_of(part.environment)))
                workers[part.environment] = worker
            order = {"module": part.module, "given": _given(comparison, part, folder)}
            found = worker.order("build", amounts.patience, **order)
            row |= {key: found[key] for key in ("about", "facts")}
            sides[i] = Running(worker, found["side"])
    return sides


def _agree(
    comparison: Comparison,
    rows: Sequence[Row],
    sides: dict[int, Running],
    amounts: Amounts,
    folder: Path,
) -> None:
    """Let all make some steps, and drop those whose outcomes are not those of mlox."""
    outcomes: dict[int, dict[str, np.ndarray]] = {}
    for i, side in list(sides.items()):
        with failing(rows[i]):
            path = str(folder / f"found_{i}.npz")
            side.order("advance", amounts.patience, steps=comparison.steps)
            side.order("outcome", amounts.patience, to=path)
            with np.load(path) as file:
                outcomes[i] = dict(file)
            _need_mlox(outcomes)
            rows[i]["difference"] = difference(outcomes[i], outcomes[0])
            if rows[i]["difference"] > comparison.tolerance:
                raise RuntimeError(
                    f"differs from mlox by {rows[i]['difference']:.1e}, "
                    f"more than {comparison.tolerance:.0e}; not timed"
                )
        if rows[i]["failed"]:
            del sides[i]


def _alternate(
    comparison: Comparison,
    rows: Sequence[Row],
    sides: dict[int, Running],
    amounts: Amounts,
) -> None:
    """Time samples of all sides in turn, each round in another order."""
    samples: list[dict[int, dict[str, float]]] = []
    length, end = comparison.length, float("inf")
    while len(samples) <= amounts.rounds or (
        len(samples) <= amounts.most and time.monotonic() < end
    ):
        ways = list(sides)
        turn = len(samples) % max(1, len(ways))
        samples.append({})
        for i in ways[turn:] + ways[:turn]:
            with failing(rows[i]):
                found = sides[i].order("advance", amounts.patience, steps=length)
                samples[-1][i] = found
            if rows[i]["failed"]:
                del sides[i]
        if len(samples) == 1:  # warms up
            end = time.monotonic() + amounts.seconds
    for i in list(sides):
        with failing(rows[i]):
            _need_mlox(sides)
            rows[i] |= _times([(found[0], found[i]) for found in samples[1:]], length)
        if rows[i]["failed"]:
            del sides[i]


def _need_mlox(found: Mapping[int, Any]) -> None:
    if 0 not in found:
        raise RuntimeError("mlox has failed: there is nothing to compare with")


def _times(samples: Sequence[tuple[Mapping, Mapping]], length: int) -> Row:
    """Return the quartiles of times of an upper step, and of their ratios to mlox's."""
    row: Row = {"rounds": len(samples)}
    for kind in ("processor", "wall"):
        ours, its = np.array([[one[kind] for one in pair] for pair in samples]).T
        row |= {kind: _quartiles(its / length), f"{kind} ratio": _quartiles(its / ours)}
    return row


def _quartiles(values: np.ndarray) -> list[float]:
    return np.quantile(values, [0.25, 0.5, 0.75]).tolist()


def _memory(
    comparison: Comparison,
    i: int,
    python_of: PythonOf,
    amounts: Amounts,
    folder: Path,
) -> dict[str, int]:
    """Return the resident memory of a side, alone in a process: see `_side.peak`."""
    part = comparison.parts[i]
    with Worker(python_of(part.environment), RETURNED) as worker:
        order = {"module": part.module, "given": _given(comparison, part, folder)}
        built = worker.order("build", amounts.patience, **order)
        side = Running(worker, built["side"])
        side.order("advance", amounts.patience, steps=comparison.length)
        peak = side.order("peak", amounts.patience, steps=comparison.length)
    return {"imported": built["imported"], **peak}
