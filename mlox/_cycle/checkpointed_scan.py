"""A scan whose steps are rematerialized in reverse mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mlox._cycle.segments import cut_rounds

Body = Callable[[Any, Any], tuple[Any, Any]]


def checkpointed_scan(
    body: Body,
    carry: Any,
    xs: Any,
    rounds: range,
    whole: bool,
    levels: int,
    unroll: bool,
) -> tuple[Any, Any]:
    """Scan over some rounds, along the first axis of `xs`, with nested checkpoints.

    `whole` says that these are all rounds. Reverse mode stores what
    `mlox.Unrolled(levels=)` says.
    """
    if whole and levels == 0:
        return _scan(body, carry, xs, len(rounds), unroll)

    # Slices for a scan over a part of the rounds, or for nested scans, would copy all
    # batches: 41 ms beside 7.5 for a cheap step. So these scans are over indices.
    def step_at(carry: Any, index: Any) -> tuple[Any, Any]:
        take = lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
        return body(carry, jax.tree.map(take, xs))

    if levels == 0:
        indices = jnp.arange(rounds.start, rounds.stop)
        return _scan(step_at, carry, indices, len(rounds), unroll)
    step = _remember(step_at, unroll)
    first, sizes = cut_rounds(len(rounds), levels)
    ys: list[Any] = []
    if first:
        indices = rounds.start + jnp.arange(first)
        carry, y = _scan(step, carry, indices, first, unroll)
        ys.append(y)
    carry, y = _nest(step, sizes, unroll)(carry, jnp.asarray(rounds.start + first))
    count = math.prod(sizes)
    ys.append(jax.tree.map(lambda x: x.reshape(count, *x.shape[len(sizes) :]), y))
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *ys)


def _nest(step: Body, sizes: Sequence[int], unroll: bool) -> Body:
    """Return (carry, first index) -> (carry, ys): steps in nested segments."""
    size, *inner = sizes
    part = _remember(_nest(step, inner, unroll), unroll) if inner else step

    def segment(carry: Any, start: Any) -> tuple[Any, Any]:
        indices = start + math.prod(inner) * jnp.arange(size)
        return _scan(part, carry, indices, size, unroll)

    return segment


def _scan(step: Body, carry: Any, xs: Any, count: int, unroll: bool) -> tuple[Any, Any]:
    return jax.lax.scan(step, carry, xs, count, unroll=count if unroll else 1)


def _remember(step: Body, unroll: bool) -> Body:
    # In a loop, common-subexpression elimination cannot undo the rematerialization.
    return jax.checkpoint(step, prevent_cse=unroll)
