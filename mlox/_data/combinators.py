"""Combine several series of batches, or add callbacks to one."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlox._data.iterators import BatchIterator, check_position, repeat
from mlox._data.shuffled import Shuffled
from mlox._data.stacking import check_series
from mlox._utils.fields import FUNCTION, check
from mlox._utils.types import Position


def together(*series: Iterable[Any], **named: Iterable[Any]) -> Iterable[Any]:
    """Combine several series: a batch of each makes one batch.

    Every series restarts at its own end, so they can have different lengths. The
    combined series is endless.

    Args:
        *series: Iterables of batches; the batches are combined to tuples.
        **named: Iterables of batches; the batches are combined to dicts.

    Returns:
        A series for `data` of `mlox.Engine.run`.

    Raises:
        TypeError: If no series is passed, if both kinds are mixed, or if one is not an
            iterable.
        ValueError: If a series looks like a single batch; and during a run, with the
            names of problem and series, if one is empty or cannot be restarted.

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
    """Call a function at the end of every pass through a series.

    The callback is called when a batch is requested after the last one of a pass, so
    not if the run ends with the pass. Batches are gathered ahead of the device: at the
    call the device may still compute the previous dispatches, so a validation may see
    an older state. A callback that raises stops the run with a `mlox.RunError`, which
    has the state.

    Args:
        series: An iterable of batches that can be iterated over repeatedly.
        callback: A function of the number of finished passes, from 1. A run that is
            resumed continues to count.

    Returns:
        An endless series for `data` of `mlox.Engine.run`, with the same batches.

    Raises:
        TypeError: If `callback` is not callable, or `series` is not an iterable.
        ValueError: If `series` looks like a single batch, or is endless, as those of
            `mlox.together` and `mlox.shuffled` are.

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
    """Several series, combined batch by batch.

    Attributes:
        sources: {name or index: series}.
        combine: Combines a tuple with one batch of each series to one batch.
    """

    sources: Mapping[Any, Iterable[Any]]
    combine: Callable[[tuple[Any, ...]], Any]

    def __iter__(self) -> Iterator[Any]:
        return self.open("mlox.together", None)

    def open(self, label: str, position: Position) -> BatchIterator:
        """Iterate over all series, each from its own position."""
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
    """A series with callbacks at the end of each pass."""

    series: Iterable[Any]
    callbacks: tuple[Callable[[int], object], ...]

    def __iter__(self) -> Iterator[Any]:
        return open_series("mlox.on_epoch_end: series", self)
