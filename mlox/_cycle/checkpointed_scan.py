"""A scan whose steps are rematerialized in reverse mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mlox.methods import Rematerialization

Body = Callable[[Any, Any], tuple[Any, Any]]


def checkpointed_scan(
    body: Body, carry: Any, xs: Any, length: int, keep: Rematerialization, unroll: bool
) -> tuple[Any, Any]:
    """Scan like `jax.lax.scan`, with what reverse mode keeps, see `mlox.Unrolled`."""

    def scan(step: Body, start: Any, inputs: Any, count: int) -> tuple[Any, Any]:
        return jax.lax.scan(step, start, inputs, count, unroll=count if unroll else 1)

    if keep == "none" or length == 1:
        return scan(body, carry, xs, length)
    # Inside a loop, common-subexpression elimination cannot undo the rematerialization.
    step = jax.checkpoint(body, prevent_cse=unroll)
    size = math.isqrt(length)
    if keep == "step" or size == 1:
        return scan(step, carry, xs, length)

    # T steps in sqrt(T) segments of sqrt(T) steps: the states at the ends of segments,
    # and the steps of one segment at a time, 2 sqrt(T) states in all (Griewank 1992).
    def segment(start: Any, inputs: Any) -> tuple[Any, Any]:
        return scan(step, start, inputs, size)

    count, rest = divmod(length, size)
    head, tail = _split(xs, rest)
    ys: list[Any] = []
    if rest:
        carry, y = scan(step, carry, head, rest)
        ys.append(y)
    tail = jax.tree.map(lambda x: x.reshape(count, size, *x.shape[1:]), tail)
    carry, y = scan(jax.checkpoint(segment, prevent_cse=unroll), carry, tail, count)
    ys.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), y))
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *ys)


def _split(xs: Any, rest: int) -> tuple[Any, Any]:
    head = jax.tree.map(lambda x: x[:rest], xs)
    tail = jax.tree.map(lambda x: x[rest:], xs)
    return head, tail
