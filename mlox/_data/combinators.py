"""Series made of series: several side by side, and one with calls at its ends."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlox._data.iterators import BatchIterator, check_position, repeat
from mlox._data.shuffled import Shuffled
from mlox._data.stacking import check_series
from mlox._utils.fields import FUNCTION, check
from mlox._utils.types import Position


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
        TypeError: If there is none, both kinds are mixed, or one is not an iterable.
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
        kinds = "series with and without names" if series else "no series"
        raise TypeError(
            f"mlox.together got {kinds}; expected mlox.together(a, b) for tuples of "
            "batches, or mlox.together(clean=a, noisy=b) for dicts."
        )
    sources = named or dict(enumerate(series))
    for key, source in sources.items():
        check_series(f"source {key!r} of mlox.together", source)
    if named:
        return Together(sources, lambda batch: dict(zip(named, batch, strict=True)))
    return Together(sources, tuple)


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
            1; a run that is resumed continues to count.

    Returns:
        A series for `data` of `mlox.Engine.run`, with the same batches. It has no end.

    Raises:
        TypeError: If `callback` cannot be called, or `series` is not an iterable.
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
    check_series("mlox.on_epoch_end: series", series)
    if isinstance(series, Together | Shuffled):
        maker = "together" if isinstance(series, Together) else "shuffled"
        raise ValueError(
            f"mlox.on_epoch_end: series comes from mlox.{maker}, which has no end; "
            "expected a series that ends, such as a list or a loader. Several: "
            "mlox.together(mlox.on_epoch_end(a, callback), b)."
        )
    hint = "It is called with the number of passes that have ended."
    check("mlox.on_epoch_end: callback", callback, FUNCTION, hint)
    if isinstance(series, WithCallbacks):
        return WithCallbacks(series.series, (*series.callbacks, callback))
    return WithCallbacks(series, (callback,))


def open_series(
    label: str, series: Iterable[Any], position: Position = None
) -> BatchIterator:
    """Iterate over a series without end; see `repeat`."""
    if isinstance(series, Together):
        return series.open(label, position)
    if isinstance(series, WithCallbacks):
        return repeat(label, series.series, position, series.callbacks)
    return repeat(label, series, position)


@dataclass(frozen=True, eq=False)
class Together:
    """Several series side by side.

    Attributes:
        sources: {name or number: series}.
        combine: Makes one batch of a tuple with a batch of each.
    """

    sources: Mapping[Any, Iterable[Any]]
    combine: Callable[[tuple[Any, ...]], Any]

    def __iter__(self) -> Iterator[Any]:
        return self.open("mlox.together", None)

    def open(self, label: str, position: Position) -> BatchIterator:
        """Iterate over all series, each from a position of its own."""
        positions = [None] * len(self.sources) if position is None else position
        same = isinstance(positions, list) and len(positions) == len(self.sources)
        check_position(label, same)
        parts = [
            open_series(f"source {key!r} of {label}", series, where)
            for (key, series), where in zip(
                self.sources.items(), positions, strict=True
            )
        ]
        batches = map(self.combine, zip(*parts, strict=True))
        return BatchIterator(batches, lambda: [part.position() for part in parts])


@dataclass(frozen=True, eq=False)
class WithCallbacks:
    """A series with calls at the end of each pass."""

    series: Iterable[Any]
    callbacks: tuple[Callable[[int], object], ...]

    def __iter__(self) -> Iterator[Any]:
        return open_series("mlox.on_epoch_end: series", self)
