"""Batches from arrays, in a new order in every pass."""

import itertools
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mlox._utils.fields import COUNT_OR_ZERO, Kind, check, is_int
from mlox._utils.types import PyTree


def shuffled(arrays: PyTree, batch_size: int, *, seed: int = 0) -> Iterable[Any]:
    """Draw batches from arrays without end, in a new order in every pass.

    The order depends only on the seed and the pass, and the series knows its position:
    a run that is resumed continues with the next batch. If the last batch of a pass
    would be smaller, it is dropped. Use it for arrays in memory; for data on disk, pass
    a dataset of grain.

    Args:
        arrays: A pytree of arrays with a common leading axis, the examples.
        batch_size: The number of examples in a batch.
        seed: The seed.

    Returns:
        A series for `data` of `mlox.Engine.run`.

    Raises:
        ValueError: If there are no arrays, if their leading axes differ, if
            `batch_size` is not between 1 and the number of examples, or if `seed` is
            not an int of at least 0.

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
    size = Kind(
        f"a positive int, at most {length}, the number of examples",
        lambda x: is_int(x) and 1 <= x <= length,
    )
    check("mlox.shuffled: batch_size", batch_size, size)
    check("mlox.shuffled: seed", seed, COUNT_OR_ZERO)
    arrays = jax.tree.map(np.asarray, arrays)
    return Shuffled(arrays, int(batch_size), length, int(seed))


@dataclass(frozen=True, eq=False)
class Shuffled:
    """An endless series of batches of arrays, which can start at any of them."""

    arrays: PyTree
    size: int
    length: int
    seed: int

    def __iter__(self) -> Iterator[Any]:
        return self.start_at(0)

    def start_at(self, number: int) -> Iterator[Any]:
        """Iterate over the batches, from a number on."""
        begin, first = divmod(number, self.length // self.size)
        for epoch in itertools.count(begin):
            yield from self._draw_pass(epoch, first)
            first = 0

    def _draw_pass(self, epoch: int, first: int) -> Iterator[Any]:
        """Draw the batches of a pass, from one on; its order is freed at the end."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        for i in range(first, self.length // self.size):
            chosen = order[i * self.size : (i + 1) * self.size]
            yield jax.tree.map(operator.itemgetter(chosen), self.arrays)
