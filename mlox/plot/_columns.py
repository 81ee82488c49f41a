"""The columns of a history, as series that can be drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mlox._utils.describe import summarize
from mlox._utils.fields import check, instance_of

HISTORY = instance_of(
    Mapping,
    "the history of a run, a dict from metrics to arrays, as engine.run returns",
)
CYCLES = ("cycle", "validation/cycle", "best_cycle")


class Series(NamedTuple):
    """A metric over cycles: its mean over the other axes, its least and largest value.

    Attributes:
        name: The metric.
        cycles: [n].
        mean, low, high: [n]; all the same for a scalar.
    """

    name: str
    cycles: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def is_scalar(self) -> bool:
        """Whether the metric has one value at each point."""
        return bool(np.array_equal(self.low, self.high, equal_nan=True))


def check_history(owner: str, history: Any) -> None:
    """Raise TypeError unless a value is a history."""
    check(f"plot.{owner}: history", history, HISTORY)


def list_metrics(history: Mapping[str, Any]) -> list[str]:
    """Return the names of the columns, without those that count cycles."""
    return [name for name in history if name not in CYCLES]


def read_series(owner: str, history: Mapping[str, Any], name: str) -> Series:
    """Return a column of a history.

    Raises:
        ValueError: If it is no column of numbers, or not as long as that of cycles.
    """
    column = _read_column(owner, name, history[name])
    index = "validation/cycle" if name.startswith("validation/") else "cycle"
    cycles = np.arange(1, len(column) + 1)
    if index in history:
        cycles = _read_column(owner, index, history[index])
    if cycles.shape != column.shape[:1]:
        raise ValueError(
            f"plot.{owner}: {name!r} has {len(column)} rows, but {index!r} has "
            f"{'x'.join(map(str, cycles.shape))}; expected one row for each."
        )
    if not len(column):
        raise ValueError(
            f"plot.{owner}: {name!r} has no rows; expected one for each logged cycle. "
            "Run for at least one cycle, or log more often."
        )
    rows = column.reshape(len(column), -1)
    if not rows.size:
        empty = np.full(len(column), np.nan)
        return Series(name, cycles, empty, empty, empty)
    return Series(name, cycles, rows.mean(1), rows.min(1), rows.max(1))


def read_all(
    owner: str, history: Mapping[str, Any], names: Iterable[str]
) -> list[Series]:
    """Return some columns of a history."""
    return [read_series(owner, history, name) for name in names]


def _read_column(owner: str, name: str, value: Any) -> np.ndarray:
    try:
        column = np.asarray(value)
        column = column if column.dtype.kind in "iub" else column.astype(float)
    except (TypeError, ValueError):  # ragged, or no numbers
        column = np.zeros(())
    if not column.ndim:
        raise ValueError(
            f"plot.{owner}: {name!r} is {summarize(value)}; expected an array with one "
            "row for each log point."
        )
    return column
