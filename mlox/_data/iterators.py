"""Iterators over batches that restart at the end and know their position."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mlox._data.shuffled import Shuffled
from mlox._utils.types import Position
from mlox._utils.warn import warn

END = object()


@runtime_checkable
class SupportsState(Protocol):
    """An iterator that can return and restore its position, as those of grain can.

    A position is bytes, or a value that can be written as JSON.
    """

    def get_state(self) -> Any: ...
    def set_state(self, state: Any, /) -> None: ...


@dataclass(frozen=True, eq=False)
class BatchIterator:
    """An endless iterator over batches, and a function that returns its position."""

    batches: Iterator[Any]
    position: Callable[[], Position]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self.batches)


def repeat(
    label: str,
    series: Iterable[Any],
    position: Position = None,
    callbacks: Iterable[Callable[[int], object]] = (),
) -> BatchIterator:
    """Iterate over a series repeatedly, and call functions after each pass.

    A list, a DataLoader or any object whose `__iter__` restarts becomes endless. The
    iterator raises ValueError if the series is empty, or ends and cannot be restarted.
    `position` is a value of `BatchIterator.position`; None for the start.
    """
    batches = iter(series)
    drawn = before = passes = 0  # `before`: drawn in finished passes
    if position is not None:
        check_position(label, isinstance(position, dict))
        drawn, before, passes = (position[k] for k in ("drawn", "before", "passes"))
        batches = _advance(label, series, batches, drawn - before, position["inner"])

    def draw() -> Iterator[Any]:
        nonlocal batches, drawn, before, passes
        while True:
            # A `for` loop would call `iter` again, which restarts some loaders.
            while (batch := next(batches, END)) is not END:
                drawn += 1
                yield batch
            if drawn == 0:
                raise ValueError(
                    f"{label} is empty; expected at least one batch. A DataLoader with "
                    "drop_last has none if the data set is smaller than one batch."
                )
            if drawn == before:
                raise ValueError(
                    f"{label} ran out after {drawn} batches and cannot be started "
                    "again; expected a re-iterable, e.g. a list or an object with "
                    "__iter__, or itertools.cycle(...)."
                )
            passes += 1
            for callback in callbacks:
                callback(passes)
            before, batches = drawn, iter(series)

    def tell() -> Position:
        counts = {"drawn": drawn, "before": before, "passes": passes}
        return {**counts, "inner": _get_state(batches)}

    return BatchIterator(draw(), tell)


def check_position(label: str, fits: bool) -> None:
    """Raise ValueError if a position belongs to another kind of series."""
    if not fits:
        raise ValueError(
            f"{label} is another kind of series than when the checkpoint was saved: "
            "mlox.together of other series, or in place of one. Pass the same data as "
            "before."
        )


def _advance(
    label: str, series: Iterable[Any], batches: Iterator[Any], count: int, state: Any
) -> Iterator[Any]:
    """Return the rest of a pass, after the first `count` batches.

    If the series cannot restore a position, these batches are read and dropped. That is
    right if every pass has the same batches, which is known only for sequences.
    """
    if isinstance(series, Shuffled):
        return series.start_at(count)
    if state is not None and isinstance(batches, SupportsState):
        text = state.get("latin-1")
        batches.set_state(state["json"] if text is None else text.encode("latin-1"))
        return batches
    if isinstance(series, itertools.repeat):
        return batches
    if count and not isinstance(series, Sequence):
        warn(
            f"{label} cannot tell its position, so that its first {count} batches are "
            "read and dropped: the run continues exactly only if they come in the same "
            "order every time. Pass a list, mlox.shuffled(...), or an iterable whose "
            "iterators have get_state and set_state, as grain's."
        )
    return itertools.islice(batches, count, None)


def _get_state(batches: Iterator[Any]) -> Any:
    """Return the position of an iterator that supports it; bytes become a string."""
    if not isinstance(batches, SupportsState):
        return None
    state = batches.get_state()
    if isinstance(state, bytes):
        return {"latin-1": state.decode("latin-1")}
    return {"json": state}
