"""Series of batches: restarted at their end, and side by side."""

from collections.abc import Iterable, Iterator
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
