"""Series of batches: restarted at their end, side by side, and with a call there."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mlox._data import check_series


def repeat(name: str, series: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a series, from its start again whenever it ends.

    A list, a DataLoader or any object whose `__iter__` starts afresh goes on without
    end. A one-shot iterator yields nothing when it is asked a second time.

    Args:
        name: The name of the problem, for errors.
        series: An iterable of batches.

    Yields:
        The batches, as they are.

    Raises:
        ValueError: If the series is empty, or cannot be started again.
    """
    return _repeated(f"data of {name!r}", series)


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
        callback: Is called with the number of passes that have ended, from 1. The
            count goes on if the series is used in another run.

    Returns:
        A series for `data` of `mlox.Engine.run`, with the same batches.

    Raises:
        TypeError: If `callback` cannot be called, or `series` is no iterable.
        ValueError: If `series` looks like a single batch, or has no end as
            `mlox.together` makes it.

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
    if not callable(callback):
        raise TypeError(
            f"callback of mlox.on_epoch_end is a {type(callback).__name__}; expected a "
            "function of the number of passes that have ended."
        )
    return _Counted(series, callback, itertools.count(1))


@dataclass(frozen=True, eq=False)
class _Together:
    """Several series, each with a name or a number."""

    sources: tuple[tuple[str | int, Iterable[Any]], ...]
    named: bool

    def __iter__(self) -> Iterator[Any]:
        return self.batches("mlox.together")

    def batches(self, whose: str) -> Iterator[Any]:
        keys = [key for key, _ in self.sources]
        repeated = [_repeated(f"source {k!r} of {whose}", s) for k, s in self.sources]
        for batch in zip(*repeated, strict=True):
            yield dict(zip(keys, batch, strict=True)) if self.named else batch


@dataclass(frozen=True, eq=False)
class _Counted:
    """A series with a call at its end, and the numbers of its passes to come."""

    series: Iterable[Any]
    callback: Callable[[int], object]
    numbers: Iterator[int]

    def __iter__(self) -> Iterator[Any]:
        some = False
        for batch in self.series:
            some = True
            yield batch
        if some:
            self.callback(next(self.numbers))


def _repeated(whose: str, series: Iterable[Any]) -> Iterator[Any]:
    if isinstance(series, _Together):
        yield from series.batches(whose)
    total = 0
    while True:
        before = total
        for batch in series:
            total += 1
            yield batch
        if total == 0:
            raise ValueError(
                f"{whose} is empty: it has no batch. A DataLoader with drop_last has "
                f"none when the data set is smaller than one batch."
            )
        if total == before:
            raise ValueError(
                f"{whose} ran out after {total} batches and cannot be started again: "
                f"pass a re-iterable, e.g. a list or an object with __iter__, or "
                f"itertools.cycle(...)."
            )
