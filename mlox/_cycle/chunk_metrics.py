"""Metrics of all tasks from those of chunks of them."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mlox._hypergradient.tasks import PER_TASK
from mlox._utils.chunks import Chunks
from mlox._utils.types import Metrics

# A loss reports a mean, and the value of each task beside it. The report of a solver is
# that of its worst task. Telemetry is about all tasks together: with the parts c,
#
#     |g|^2 = sum_c |g_c|^2,    <g, h> = sum_c |g_c| |h_c| cos_c.

NORMS = ("gradient_norm", "direct_norm", "norm")


def join_metrics(
    chunks: Chunks, axes: Mapping[str, int], metrics: Metrics, telemetry: bool
) -> Metrics:
    """Return metrics of all tasks from those of each chunk, along a first axis.

    `axes` has, for each problem, where the axis of tasks is without that of chunks.
    """
    joined: Metrics = {}
    for key, x in metrics.items():
        axis = axes[key.split("/")[0]]
        if (each := f"{key}{PER_TASK}") in metrics:
            joined[key] = jnp.mean(chunks.join(metrics[each], axis), axis)
        elif key.endswith(PER_TASK):
            joined[key] = chunks.join(x, axis)
        else:
            joined[key] = _join(key, metrics, telemetry)
    return joined


def _join(key: str, metrics: Metrics, telemetry: bool) -> jax.Array:
    """Return a metric that is about tasks together."""
    x, name = metrics[key], key.split("/")[-1]
    if name == "gap":
        return jnp.mean(x, axis=0)
    if telemetry and name == "nonfinite_entries":
        return jnp.sum(x, axis=0, dtype=x.dtype)
    if telemetry and name in NORMS:
        return _unit_and_norm(x)[1]
    if telemetry and name == "cosine":
        part = metrics[key.removesuffix("cosine") + "norm"]
        direct = metrics[key.split("/")[0] + "/direct_norm"]
        (p, whole), (d, of_direct) = _unit_and_norm(part), _unit_and_norm(direct)
        both_zero = (whole == 0) & (of_direct == 0)
        return jnp.where(both_zero, 1.0, jnp.sum(p * d * x, axis=0))
    return jnp.max(x, axis=0)


def _unit_and_norm(parts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return norms along the first axis over the norm of all, and that one."""
    size = _one_if_zero(jnp.max(parts, axis=0, keepdims=True))
    # Scaled, since squares may overflow or underflow.
    whole = size * jnp.sqrt(jnp.sum((parts / size) ** 2, axis=0, keepdims=True))
    return parts / _one_if_zero(whole), whole[0]


def _one_if_zero(x: jax.Array) -> jax.Array:
    return jnp.where((x > 0) & jnp.isfinite(x), x, 1)
