"""The state of a run, as frozen values that the loop passes on."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mlox._run.dispatch import Totals
from mlox._run.early_stopping import Best
from mlox._run.health import Watch
from mlox._run.history import History
from mlox._utils.types import Columns, PyTree


class Phase(enum.Enum):
    """The phases of a run, in the words of the error messages."""

    START = "the start of"
    DATA = "the data of"
    STEP = "the step of"
    VALIDATION = "the validation after"
    EARLY_STOPPING = "the early stopping after"
    LOGGING = "logging after"
    CHECKPOINT = "the checkpoint after"
    SIGNAL = "a signal after"
    CLOSING = "closing loggers and checkpoints after"


# These phases belong to the next cycles, the others to the last one.
AHEAD = (Phase.START, Phase.DATA, Phase.STEP)


class Point(NamedTuple):
    """A state, and the sums of the metrics of the cycles from `since` to `cycle`."""

    cycle: int
    state: PyTree
    totals: Totals
    since: int


@dataclasses.dataclass(frozen=True, eq=False, repr=False, slots=True)
class Rows:
    """A table as its last row and the rows before, so that appending copies nothing.

    It is not a tuple, since it is as deep as it is long: what recurses into tuples
    (pytrees, `repr`, comparisons) would reach the recursion limit.
    """

    last: Columns
    before: Rows | None = None


class RunState(NamedTuple):
    """The state of a run, which is returned with an error if the next line fails.

    Attributes:
        points: The last dispatches that may still be computing, the newest one last, so
            that the device is busy while the host works; and the one before them.
        fallback: A point that is computed, and whose state is never donated.
        positions: Where the data are after the batches of the newest point.
        records: The mean metrics at each log point.
        validations: The scores of each validation.
        best: The state of the early stopping.
        best_state: The state of its best point, if the run returns that one.
        rewind_to: The state of the last checkpoint, if non-finite cycles are replaced
            by it.
        watches: What is known of the answers that are screened.
        clock: A cycle, and the time when it began, in seconds; for the speed.
    """

    points: tuple[Point, ...]
    fallback: Point
    positions: Mapping[str, Any]
    records: Rows | None = None
    validations: Rows | None = None
    best: Best = Best()
    best_state: PyTree = None
    rewind_to: PyTree = None
    watches: tuple[Watch, ...] = ()
    clock: tuple[int, float] = (0, 0.0)

    @property
    def point(self) -> Point:
        """The newest point, from which the next dispatch continues."""
        return self.points[-1]

    @property
    def final(self) -> PyTree:
        """The state that a run returns: the best one, or the last."""
        return self.point.state if self.best_state is None else self.best_state

    def reach(self, point: Point) -> RunState:
        """Return the state of the run after one more dispatch."""
        return self._replace(points=(*self.points, point))

    def settle(self, ahead: int, donate: bool) -> RunState:
        """Wait for all dispatches but the newest ones, and forget what is before them.

        Args:
            ahead: How many of the newest may still be computing.
            donate: Whether the states of points are donated, and so no fallback.

        Returns:
            The state of the run without the points before the last one computed.
        """
        points = self.points[-1 - ahead :]
        # What one program returns is ready together.
        next(iter(points[0].totals.sums.values())).block_until_ready()
        fallback = self.fallback if donate else points[0]
        return self._replace(points=points, fallback=fallback)


NO_TOTALS = Totals({}, {}, {})


def start_at(
    cycle: int, state: PyTree, since: int = 0, totals: Totals = NO_TOTALS
) -> RunState:
    """Return the state of a run before its first dispatch."""
    point = Point(cycle, state, totals, since)
    return RunState((point,), fallback=point, positions={})


def find_last_good(reached: RunState) -> tuple[Point, int]:
    """Return the newest point that exists, and the last cycle that was computed."""
    good, computed = reached.fallback, reached.fallback.cycle
    for point in reached.points:
        try:
            jax.block_until_ready(point.totals)
        except BaseException:  # this dispatch failed, or Ctrl-C came again
            break
        computed = point.cycle
        leaves = jax.tree.leaves(point.state)
        if not any(isinstance(x, jax.Array) and x.is_deleted() for x in leaves):
            good = point
    return good, computed


def list_rows(table: Rows | None) -> list[Columns]:
    """Return the rows of a table, the first one first."""
    rows: list[Columns] = []
    while table is not None:
        rows.append(table.last)
        table = table.before
    return rows[::-1]


def stack_columns(table: Rows | None) -> Columns:
    """Return the columns of a table.

    Rows from before a run was resumed may lack a value, or have it in another shape:
    they then hold NaN in the shape of the last row that has it, or 0 for a count.
    """
    rows = list_rows(table)
    last = {name: value for row in rows for name, value in row.items()}

    def value_of(row: Columns, name: str, like: np.ndarray) -> np.ndarray:
        value = row.get(name)
        if value is not None and value.shape == like.shape:
            return value
        return np.full_like(like, np.nan if like.dtype.kind in "fc" else 0)

    return {
        name: np.stack([value_of(row, name, like) for row in rows])
        for name, like in last.items()
    }


def history_of(reached: RunState) -> History:
    """Return the history of a run: columns of mean metrics and of scores."""
    means = stack_columns(reached.records) or {"cycle": np.zeros((0,), int)}
    history = History(means | stack_columns(reached.validations))
    if reached.best.cycle or reached.best.waited:
        history["best_cycle"] = np.asarray(reached.best.cycle)
    return history
