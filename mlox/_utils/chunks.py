"""Chunks of tasks: a map over an axis, of which a part is there at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mlox._utils.convolutions import should_unroll
from mlox._utils.types import PyTree

# What reverse mode stores of N tasks at once falls to that of k, if chunks of k follow
# one another in a loop and each is recomputed in the backward pass. Arrays that carry
# derivatives are scanned over; a slice inside the loop would have a cotangent of the
# size of the whole, added up anew in each chunk. Arrays that carry none, as batches,
# are sliced inside: scanning over an inner axis would copy them first.


@dataclass(frozen=True)
class Chunks:
    """N tasks in N/k chunks: the tasks i, i + N/k, i + 2N/k, ... are chunk i.

    A device of a mesh over which tasks are split holds some that follow one another:
    so each chunk has tasks of all devices.

    Attributes:
        tasks: Their number N.
        at_once: The size k of a chunk, which divides it.
    """

    tasks: int
    at_once: int

    @property
    def count(self) -> int:
        """The number of chunks."""
        return self.tasks // self.at_once

    def number(self, chunk: jax.Array) -> jax.Array:
        """Return the indices of the tasks of a chunk, int32."""
        own = jnp.arange(self.at_once, dtype=jnp.int32)
        return own * self.count + chunk.astype(jnp.int32)

    def split(self, tree: PyTree) -> PyTree:
        """Return arrays [N, ...] as [N/k, k, ...].

        Example:
            >>> Chunks(4, 2).split(jnp.arange(4)).tolist()
            [[0, 2], [1, 3]]
        """

        def split(x: jax.Array) -> jax.Array:
            return x.reshape(self.at_once, self.count, *x.shape[1:]).swapaxes(0, 1)

        return jax.tree.map(split, tree)

    def take(self, tree: PyTree, chunk: jax.Array, axis: int = 0) -> PyTree:
        """Return the tasks of a chunk from arrays with an axis of all tasks.

        Example:
            >>> Chunks(4, 2).take(jnp.arange(4), jnp.int32(1)).tolist()
            [1, 3]
        """

        def take(x: jax.Array) -> jax.Array:
            before, after = x.shape[:axis], x.shape[axis + 1 :]
            x = x.reshape(*before, self.at_once, self.count, *after)
            return jax.lax.dynamic_index_in_dim(x, chunk, axis + 1, keepdims=False)

        return jax.tree.map(take, tree)

    def join(self, tree: PyTree, axis: int = 0) -> PyTree:
        """Return arrays [N/k, ..., k, ...] as [..., N, ...], with N at an axis.

        Example:
            >>> Chunks(4, 2).join(jnp.array([[0, 2], [1, 3]])).tolist()
            [0, 1, 2, 3]
        """

        def join(x: jax.Array) -> jax.Array:
            x = jnp.moveaxis(x, 0, axis + 1)
            return x.reshape(*x.shape[:axis], self.tasks, *x.shape[axis + 2 :])

        return jax.tree.map(join, tree)

    def scan(
        self, function: Callable[[jax.Array, PyTree], PyTree], xs: PyTree, unroll: bool
    ) -> PyTree:
        """Return what `function(chunk, x)` returns for each chunk, [N/k, ...].

        `xs` are arrays [N/k, ...], or None. Where chunks are written out nothing keeps
        them apart, so that recomputing them would save no memory.
        """
        run = function if unroll else jax.checkpoint(function, prevent_cse=False)
        numbers = jnp.arange(self.count, dtype=jnp.int32)
        _, ys = jax.lax.scan(
            lambda _, x: (None, run(*x)),
            None,
            (numbers, xs),
            unroll=self.count if unroll else 1,
        )
        return ys


def vmap_in_chunks(
    function: Callable[..., PyTree], size: int, at_once: int | None, axes: Any = 0
) -> Callable[..., PyTree]:
    """Return `jax.vmap(function)`, with a part of the axis at a time.

    Args:
        function: What is mapped, over the first axis of all its arguments. The first
            one is data, through which few derivatives flow, if any.
        size: The size of this axis.
        at_once: The size of a part, which divides it; None for all at once.
        axes: Where the axis is in the first argument, an int or a prefix of it with
            ints for leaves, as for `jax.vmap`.

    Example:
        >>> vmap_in_chunks(jnp.sin, 4, 2)(jnp.zeros(4)).tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    if at_once is None or at_once == size:
        return _map_first(function, size, axes)
    chunks = Chunks(size, at_once)
    of_chunk = _map_first(function, at_once, axes)

    def take(data: Any, chunk: jax.Array) -> Any:
        part = lambda axis, tree: chunks.take(tree, chunk, axis)
        return jax.tree.map(part, axes, data)

    def mapped(data: Any, *args: Any) -> PyTree:
        def run(chunk: jax.Array, xs: tuple[Any, ...]) -> PyTree:
            return of_chunk(take(data, chunk), *xs)

        xs = chunks.split(args)
        first = jax.tree.map(lambda x: x[0], xs)
        unroll = should_unroll(run, jnp.int32(0), first)
        return chunks.join(chunks.scan(run, xs, unroll))

    return mapped


def _map_first(
    function: Callable[..., PyTree], size: int, axes: Any
) -> Callable[..., PyTree]:
    """Return `jax.vmap(function)`, over given axes of the first argument."""

    def mapped(data: Any, *args: Any) -> PyTree:
        in_axes = (axes, *(0 for _ in args))
        return jax.vmap(function, in_axes, axis_size=size)(data, *args)

    return mapped
