"""Series of batches: restarted at their end, side by side, and with a call there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from mlox._data.iterators import Position, Shuffled, check_position, opened
from mlox._data.stacking import check_series


class Opened(Protocol):
    """An iterator over batches that can tell its position."""

    def __iter__(self) -> Iterator[Any]:
        """Return itself."""
        ...

    def __next__(self) -> Any:
        """Return the next batch."""
        ...

    def position(self) -> Position:
        """Return where it is."""
        ...


def repeat(name: str, series: Iterable[Any], position: Position = None) -> Opened:
    """Open the series of a problem: its batches, again and again.

    Args:
        name: The name of the problem, for errors.
        series: An iterable of batches.
        position: Where to go on, from `position`; None for the start.

    Returns:
        An iterator that can tell its position.

    Raises:
        ValueError: In its course, if the series is empty, or cannot be started again.
    """
    return _opened(f"data of {name!r}", series, position)


def together(*series: Iterable[Any], **named: Iterable[Any]) -> Iterable[Any]:
    """Put several series side by side: a batch of each makes one batch.

    Every series starts again at its own end, so that they may have any lengths, and
    none is cut to the shortest. The whole has no end.

    Args:
        *series: Iterables of batches, for a series of tuples.
        **named: Iterables of batches, for a series of dicts with these names.

    Returns:
        A series for `data` of `mlox.Engine.run`.

    Raises:
        TypeError: If there is none, both kinds are mixed, or one is no iterable.
        ValueError: If one looks like a single batch; and in a run, with the names of
            problem and series, if one is empty or cannot be started again.

    Example:
        >>> import itertools
        >>> pairs = together([1, 2], ["a", "b", "c"])
        >>> list(itertools.islice(pairs, 4))
        [(1, 'a'), (2, 'b'), (1, 'c'), (2, 'a')]
        >>> next(iter(together(clean=[1, 2], noisy=[3])))
        {'clean': 1, 'noisy': 3}
    """
    if bool(series) == bool(named):
        raise TypeError(
            "mlox.together got "
            + ("series with and without names" if series else "no series")
            + "; expected mlox.together(a, b) for tuples of batches, or "
            "mlox.together(clean=a, noisy=b) for dicts."
        )
    sources = tuple(named.items()) if named else tuple(enumerate(series))
    for key, source in sources:
        check_series(f"source {key!r} of mlox.together", source)
    return _Together(sources, bool(named))


def on_epoch_end(
    series: Iterable[Any], callback: Callable[[int], object]
) -> Iterable[Any]:
    """Call a function whenever a pass through a series ends.

    A pass has ended when a batch is asked for after its last one, so a pass whose last
    batch is the last one of a run makes no call. Batches are gathered ahead of the
    device: at the call it may still have the dispatches before to compute, and what a
    validation sees of the state is older. A callback that raises stops the run with a
    `mlox.RunError`, which holds the state.

    Args:
        series: An iterable of batches that can be iterated over again.
        callback: Is called with the number of passes that have ended in this run, from
            1; a run that is resumed goes on counting.

    Returns:
        A series for `data` of `mlox.Engine.run`, with the same batches. It has no end.

    Raises:
        TypeError: If `callback` cannot be called, or `series` is no iterable.
        ValueError: If `series` looks like a single batch, or has no end, as
            those of `mlox.together` and `mlox.shuffled`.

    Example:
        >>> import jax.numpy as jnp, mlox, optax
        >>> problem = mlox.Problem.create(
        ...     name="x", params=jnp.ones(()), tx=optax.sgd(0.25),
        ...     loss_fn=lambda params, batch, ctx: (params - batch) ** 2)
        >>> engine = mlox.Engine([problem])
        >>> batches = mlox.on_epoch_end([0.0, 1.0], lambda epoch: print("end", epoch))
        >>> _ = engine.run(engine.init(), {"x": batches}, train_iters=5, loggers=())
        end 1
        end 2
    """
    check_series("series of mlox.on_epoch_end", series)
    if isinstance(series, _Together):
        raise ValueError(
            "series of mlox.on_epoch_end comes from mlox.together, which has no end; "
            "expected the other order, e.g. "
            "mlox.together(mlox.on_epoch_end(a, callback), b)."
        )
    if isinstance(series, Shuffled):
        raise ValueError(
            "series of mlox.on_epoch_end comes from mlox.shuffled, which has no end; "
            "expected a series that ends, such as a list or a loader."
        )
    if not callable(callback):
        raise TypeError(
            f"callback of mlox.on_epoch_end is a {type(callback).__name__}; expected a "
            "function of the number of passes that have ended."
        )
    return _Counted(series, callback)


@dataclass(frozen=True, eq=False)
class _Together:
    """Several series, each with a name or a number."""

    sources: tuple[tuple[str | int, Iterable[Any]], ...]
    named: bool

    def __iter__(self) -> Iterator[Any]:
        return self.opened("mlox.together", None)

    def opened(self, whose: str, position: Position) -> Opened:
        positions = [None] * len(self.sources) if position is None else position
        same = isinstance(positions, list) and len(positions) == len(self.sources)
        check_position(whose, same)
        keys = tuple(key for key, _ in self.sources)
        parts = tuple(
            _opened(f"source {key!r} of {whose}", series, where)
            for (key, series), where in zip(self.sources, positions, strict=True)
        )
        return _Joined(keys, parts, self.named)


@dataclass(frozen=True, eq=False)
class _Joined:
    """The batches of several sources, one of each at a time."""

    keys: tuple[str | int, ...]
    parts: tuple[Opened, ...]
    named: bool

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = tuple(next(part) for part in self.parts)
        return dict(zip(self.keys, batch, strict=True)) if self.named else batch

    def position(self) -> Position:
        return [part.position() for part in self.parts]


@dataclass(frozen=True, eq=False)
class _Counted:
    """A series with a call at the end of each pass."""

    series: Iterable[Any]
    callback: Callable[[int], object]

    def __iter__(self) -> Iterator[Any]:
        return _opened("series of mlox.on_epoch_end", self, None)


def _opened(whose: str, series: Iterable[Any], position: Position) -> Opened:
    if isinstance(series, _Together):
        return series.opened(whose, position)
    ended: list[Callable[[int], object]] = []
    while isinstance(series, _Counted):
        ended.insert(0, series.callback)
        series = series.series
    return opened(whose, series, position, tuple(ended))
