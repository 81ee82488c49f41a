"""Sides of a comparison beside each other: they must agree first, then they are timed.

Every environment has a process of its own, all of them on one core, and one runs at a
time; memory is measured afterwards, on all cores. What fails is a row that says why,
and the others go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
CORES = sorted(os.sched_getaffinity(0))


class Amounts(NamedTuple):
    """How much is measured.

    Attributes:
        rounds: The least number of samples of each side.
        most: The largest.
        seconds: Between them samples are taken for so long.
        building: The seconds in which a side must have been built, compiling included.
        patience: The seconds in which any other order must have been carried out.
    """

    rounds: int = 9
    most: int = 25
    seconds: float = 8.0
    building: float = 300.0
    patience: float = 300.0


FULL, QUICK = Amounts(), Amounts(rounds=5, most=9, seconds=2.0)


class Running(NamedTuple):
    """A side that has been built in a process."""

    worker: Worker
    number: int
    patience: float

    def order(self, verb: str, **given: Any) -> dict[str, Any]:
        return self.worker.order(verb, self.patience, side=self.number, **given)


class Duel(NamedTuple):
    """A comparison, and all that it takes to run it.

    Attributes:
        comparison: The comparison.
        python_of: From the name of an environment to its interpreter; it may raise.
        amounts: How much is measured.
        folder: Where sides and this process leave each other arrays.
    """

    comparison: Comparison
    python_of: PythonOf
    amounts: Amounts
    folder: Path

    def worker(
        self, part: Part, core: int, variables: Mapping[str, str] = {}
    ) -> Worker:
        """Start a process for a side."""
        own = {n: x.format(folder=self.folder) for n, x in part.variables.items()}
        return Worker(self.python_of(part.environment), core, {**variables, **own})

    def build(self, worker: Worker, part: Part) -> tuple[Running, dict[str, Any]]:
        """Build a side in a process, and return what it says of itself, too."""
        path = self.folder / f"given_{self.comparison.parts.index(part)}.npz"
        if not path.exists():
            settings = json.dumps({**self.comparison.settings, **part.settings})
            np.savez(path, settings=settings, **self.comparison.given())
        order = {"module": part.module, "given": str(path)}
        found = worker.order("build", self.amounts.building, **order)
        return Running(worker, found["side"], self.amounts.patience), found


def duel(comparison: Comparison, python_of: PythonOf, amounts: Amounts) -> Row:
    """Return what is found of a comparison, with a row for each side."""
    rows = [_row(part) for part in comparison.parts]
    with tempfile.TemporaryDirectory() as name:
        this = Duel(comparison, python_of, amounts, Path(name))
        with contextlib.ExitStack() as stack:
            sides = _built(this, rows, stack)
            _agree(this, rows, sides)
            _alternate(this, rows, sides)
        _weigh(this, rows, sides)
    sizes = {"steps": comparison.steps, "length": comparison.length}
    names = {"group": comparison.group, "job": comparison.job}
    return {**names, **sizes, "tolerance": comparison.tolerance, "sides": rows}


@contextlib.contextmanager
def failing(row: Row) -> Iterator[None]:
    """Note in a row why what is done for it has failed, and go on."""
    try:
        yield
    except Exception as error:
        name = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
        row["failed"] = f"{name}{error}".splitlines()[0][:300]


def difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """Return the largest difference, relative to the largest entry of each array.

    Raises:
        FloatingPointError: If an entry is not finite.
        ValueError: If they are not the same arrays.
    """
    shapes, others = (
        {name: array.shape for name, array in some.items()}
        for some in (found, expected)
    )
    if shapes != others:
        raise ValueError(f"the outcome is {shapes}, not {others}")
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


def _built(
    this: Duel, rows: Sequence[Row], stack: contextlib.ExitStack
) -> dict[int, Running]:
    """Build the sides; return those that have not failed."""
    workers: dict[tuple[Any, ...], Worker] = {}
    sides: dict[int, Running] = {}
    for i, (part, row) in enumerate(zip(this.comparison.parts, rows, strict=True)):
        with failing(row):
            key = part.environment, *part.variables.items()
            worker = workers.get(key)
            if worker is None or worker.process.poll() is not None:
                worker = stack.enter_context(this.worker(part, CORES[-1]))
                workers[key] = worker
            sides[i], found = this.build(worker, part)
            row |= {key: found[key] for key in ("about", "facts")}
    return sides


def _agree(this: Duel, rows: Sequence[Row], sides: dict[int, Running]) -> None:
    """Let all make some steps, and drop those whose outcomes differ from the first."""
    outcomes: dict[int, dict[str, np.ndarray]] = {}
    tolerance = this.comparison.tolerance
    for i, side in list(sides.items()):
        with failing(rows[i]):
            path = str(this.folder / f"found_{i}.npz")
            side.order("advance", steps=this.comparison.steps)
            side.order("outcome", to=path)
            with np.load(path) as file:
                outcomes[i] = dict(file)
            first = _need_first(rows, outcomes)
            found = rows[i]["difference"] = difference(outcomes[i], outcomes[0])
            if found > tolerance:
                text = f"differs from {first} by {found:.1e}, more than {tolerance:.0e}"
                raise RuntimeError(f"{text}; not timed")
        if rows[i]["failed"]:
            del sides[i]


def _alternate(this: Duel, rows: Sequence[Row], sides: dict[int, Running]) -> None:
    """Time samples of all sides in turn, each round in another order."""
    samples: list[dict[int, dict[str, float]]] = []
    length, end = this.comparison.length, float("inf")
    while len(samples) <= this.amounts.rounds or (
        len(samples) <= this.amounts.most and time.monotonic() < end
    ):
        ways = list(sides)
        turn = len(samples) % max(1, len(ways))
        samples.append({})
        for i in ways[turn:] + ways[:turn]:
            with failing(rows[i]):
                samples[-1][i] = sides[i].order("advance", steps=length)
            if rows[i]["failed"]:
                del sides[i]
        if len(samples) == 1:  # warms up
            end = time.monotonic() + this.amounts.seconds
    for i in list(sides):
        with failing(rows[i]):
            _need_first(rows, sides)
            rows[i] |= _times([(found[0], found[i]) for found in samples[1:]], length)
        if rows[i]["failed"]:
            del sides[i]


def _need_first(rows: Sequence[Row], found: Mapping[int, Any]) -> str:
    """Return the name of the side that the others are compared with."""
    name = rows[0]["name"]
    if 0 not in found:
        raise RuntimeError(f"{name} has failed: there is nothing to compare with")
    return name


def _times(samples: Sequence[tuple[Mapping, Mapping]], length: int) -> Row:
    """Return the quartiles of the times of an upper step, and of their ratios."""
    row: Row = {"rounds": len(samples)}
    for kind in ("processor", "wall"):
        ours, its = np.array([[one[kind] for one in pair] for pair in samples]).T
        row |= {kind: _quartiles(its / length), f"{kind} ratio": _quartiles(its / ours)}
    return row


def _quartiles(values: np.ndarray) -> list[float]:
    return np.quantile(values, [0.25, 0.5, 0.75]).tolist()


def _weigh(this: Duel, rows: Sequence[Row], sides: Iterable[int]) -> None:
    """Measure the memory of sides, each alone in a process: see `_side.peak`."""
    cores: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in CORES:
        cores.put(core)

    def weigh(i: int) -> None:
        part, core, steps = (
            this.comparison.parts[i],
            cores.get(),
            this.comparison.length,
        )
        with failing(rows[i]):
            with this.worker(part, core, RETURNED) as worker:
                side, built = this.build(worker, part)
                side.order("advance", steps=steps)
                peak = side.order("peak", steps=steps)
            rows[i]["memory"] = {"started": built["started"], **peak}
            rows[i]["facts"] = built["facts"] if part.variables else rows[i]["facts"]
        cores.put(core)

    with ThreadPoolExecutor(len(CORES)) as pool:
        list(pool.map(weigh, sides))
