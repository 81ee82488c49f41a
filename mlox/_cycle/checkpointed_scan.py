"""A scan whose steps are rematerialized in reverse mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mlox._cycle.segments import cut_rounds

Body = Callable[[Any, Any], tuple[Any, Any]]


def checkpointed_scan(
    body: Body, carry: Any, xs: Any, rounds: range, levels: int, unroll: bool
) -> tuple[Any, Any]:
    """Scan over some rounds, the first axis of `xs`, with nested checkpoints.

    Reverse mode stores what `mlox.Unrolled(levels=)` says.
    """

    # A scan over slices copies them: of the batches of a window, which may be large,
    # once for each level. So the scan is over indices.
    def step(carry: Any, index: Any) -> tuple[Any, Any]:
        return body(carry, jax.tree.map(lambda x: _take(x, index), xs))

    def scan(step: Body, start: Any, indices: jax.Array) -> tuple[Any, Any]:
        count = indices.shape[0]
        return jax.lax.scan(step, start, indices, unroll=count if unroll else 1)

    def remember(step: Body) -> Body:
        # In a loop, common-subexpression elimination cannot undo rematerialization.
        return jax.checkpoint(step, prevent_cse=unroll)

    if levels == 0 or len(rounds) == 1:
        return scan(step, carry, jnp.arange(rounds.start, rounds.stop))
    run, width, ys = remember(step), 1, []
    first, sizes = cut_rounds(len(rounds), levels)
    if first:
        carry, y = scan(run, carry, rounds.start + jnp.arange(first))
        ys.append(y)
    for level, size in enumerate(reversed(sizes), 1):

        def segment(
            carry: Any,
            start: Any,
            run: Body = run,
            width: int = width,
            size: int = size,
        ) -> tuple[Any, Any]:
            return scan(run, carry, start + width * jnp.arange(size))

        run, width = remember(segment) if level < levels else segment, width * size
    carry, y = run(carry, rounds.start + first)
    ys.append(jax.tree.map(lambda x: x.reshape(width, *x.shape[levels:]), y))
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *ys)


def _take(x: Any, index: Any) -> Any:
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
