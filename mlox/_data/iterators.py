"""Series of batches that can tell where they are, and go on from there."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from mlox._utils.types import PyTree

END = object()
Position = Any
"""What JSON holds: numbers, strings, lists, dicts and None."""


@runtime_checkable
class Positioned(Protocol):
    """An iterator that can tell its position, as those of grain do."""

    def get_state(self) -> Any:
        """Return the position, as bytes or as what JSON holds."""
        ...

    def set_state(self, state: Any, /) -> None:
        """Go to a position."""
        ...


@dataclass
class Course:
    """How far a series was drawn from: the one thing that drawing changes.

    Attributes:
        batches: The pass at hand.
        drawn: The batches so far.
        before: Those of the passes before.
        passes: The passes that have ended.
    """

    batches: Iterator[Any]
    drawn: int = 0
    before: int = 0
    passes: int = 0


@dataclass(frozen=True, eq=False)
class Source:
    """The batches of a series, from its start again whenever it ends.

    A list, a DataLoader or any object whose `__iter__` starts afresh goes on without
    end. A one-shot iterator yields nothing when it is asked a second time.

    Attributes:
        whose: What the series is, for errors: "data of 'name'".
        series: An iterable of batches.
        ended: Are called with the number of passes whenever one has ended.
        course: How far it was drawn from.
    """

    whose: str
    series: Iterable[Any]
    ended: tuple[Callable[[int], object], ...]
    course: Course

    def __iter__(self) -> Iterator[Any]:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Return the next batch."""
        course = self.course
        batch = next(course.batches, END)
        if batch is END:
            self._end_pass()
            batch = next(course.batches, END)
        if batch is END:
            self._check_pass()
        course.drawn += 1
        return batch

    def position(self) -> Position:
        """Return where it is: a position that `opened` takes."""
        course, inner = self.course, None
        if isinstance(course.batches, Positioned):
            inner = _encoded(course.batches.get_state())
        passed = {"drawn": course.drawn, "before": course.before}
        return {**passed, "passes": course.passes, "inner": inner}

    def _end_pass(self) -> None:
        self._check_pass()
        course = self.course
        course.passes += 1
        for call in self.ended:
            call(course.passes)
        course.before, course.batches = course.drawn, iter(self.series)

    def _check_pass(self) -> None:
        drawn = self.course.drawn
        if drawn == 0:
            raise ValueError(
                f"{self.whose} is empty: it has no batch. A DataLoader with drop_last "
                f"has none when the data set is smaller than one batch."
            )
        if drawn == self.course.before:
            raise ValueError(
                f"{self.whose} ran out after {drawn} batches and cannot be started "
                f"again: pass a re-iterable, e.g. a list or an object with __iter__, "
                f"or itertools.cycle(...)."
            )


def opened(
    whose: str,
    series: Iterable[Any],
    position: Position = None,
    ended: tuple[Callable[[int], object], ...] = (),
) -> Source:
    """Open a series, at a position or, if that is None, at its start.

    A series that cannot go to a position is drawn from until it is there. That is
    right for one that gives the same batches every time, which nobody can know of any
    but a sequence: a warning says so.
    """
    batches = iter(series)
    if position is None:
        return Source(whose, series, ended, Course(batches))
    check_position(whose, isinstance(position, dict))
    inner, passed = position["inner"], position["drawn"] - position["before"]
    if inner is not None and isinstance(batches, Positioned):
        batches.set_state(_decoded(inner))
    elif not isinstance(series, itertools.repeat):
        batches = itertools.islice(batches, passed, None)
        if passed and not isinstance(series, Sequence):
            warnings.warn(
                f"{whose} cannot tell its position, so that its first {passed} batches "
                "are drawn and dropped: the run goes on exactly only if they come in "
                "the same order every time. Pass a list, mlox.shuffled(...), or an "
                "iterable whose iterators have get_state and set_state, as grain's.",
                stacklevel=2,
            )
    course = Course(batches, position["drawn"], position["before"], position["passes"])
    return Source(whose, series, ended, course)


def check_position(whose: str, fits: bool) -> None:
    """Refuse to go on with a series of another kind than the one that was saved."""
    if not fits:
        raise ValueError(
            f"{whose} is another kind of series than when the checkpoint was saved: "
            "mlox.together of other series, or in place of one. Pass the same data as "
            "before."
        )


def shuffled(arrays: PyTree, batch_size: int, *, seed: int = 0) -> Iterable[Any]:
    """Draw batches from arrays, in a new order at every pass, without end.

    The order is a function of the seed and the pass alone, and the series can tell its
    position: a run that is resumed goes on with the very next batch. Examples that are
    left at the end of a pass, fewer than a batch, are left out.

    Args:
        arrays: A pytree of arrays with one leading axis, the examples.
        batch_size: Examples in a batch.
        seed: The seed.

    Returns:
        A series for `data` of `mlox.Engine.run`.

    Raises:
        ValueError: If there are no arrays, their leading axes differ, the batch is no
            positive number of examples, at most all, or the seed is no count.

    Example:
        >>> import itertools, mlox, numpy as np
        >>> series = mlox.shuffled((np.arange(5), np.arange(5) * 10), 2)
        >>> for x, y in itertools.islice(series, 2):
        ...     print(x.shape, y - 10 * x)
        (2,) [0 0]
        (2,) [0 0]
    """
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(arrays)}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(
            f"mlox.shuffled got arrays with the leading axes {sorted(lengths)}; "
            "expected a pytree of arrays with one leading axis, the examples."
        )
    ((length,),) = lengths
    whole = isinstance(batch_size, int | np.integer) and not isinstance(
        batch_size, bool
    )
    if not whole or not 1 <= batch_size <= length:
        raise ValueError(
            f"mlox.shuffled got batch_size={batch_size!r}; expected a positive int, at "
            f"most {length}, the number of examples."
        )
    counts = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not counts or seed < 0:
        raise ValueError(
            f"mlox.shuffled got seed={seed!r}; expected an int, 0 or more."
        )
    arrays = jax.tree.map(np.asarray, arrays)
    return Shuffled(arrays, int(batch_size), length, int(seed))


@dataclass(frozen=True, eq=False)
class Shuffled:
    """Arrays, drawn from in passes of seeded orders."""

    arrays: PyTree
    size: int
    length: int
    seed: int

    def __iter__(self) -> Iterator[Any]:
        return _ShuffledBatches(self, Course(iter(())))

    def batch(self, number: int) -> Any:
        """Return the batch of a number."""
        epoch, i = divmod(number, self.length // self.size)
        order = _order(self.seed, epoch, self.length)
        chosen = order[i * self.size : (i + 1) * self.size]
        return jax.tree.map(lambda x: x[chosen], self.arrays)


@dataclass(frozen=True, eq=False)
class _ShuffledBatches:
    """The batches of `Shuffled`, from a number on."""

    of: Shuffled
    course: Course

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.course.drawn += 1
        return self.of.batch(self.course.drawn - 1)

    def get_state(self) -> int:
        return self.course.drawn

    def set_state(self, state: int, /) -> None:
        self.course.drawn = state


@functools.lru_cache(maxsize=16)
def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)


def _encoded(state: Any) -> Any:
    if isinstance(state, bytes):
        return {"latin-1": state.decode("latin-1")}
    return {"json": state}


def _decoded(state: Any) -> Any:
    return state["latin-1"].encode("latin-1") if "latin-1" in state else state["json"]
