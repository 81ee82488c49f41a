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
        values = metrics.get(f"{key}{PER_TASK}")
        if values is not None:
            joined[key] = jnp.mean(chunks.join(values, axis), axis)
        elif key.removesuffix(PER_TASK) in metrics:
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
        return jnp.sum(x, axis=0)
    if telemetry and name in NORMS:
        return _norm(x)
    if telemetry and name == "cosine":
        part = metrics[key.removesuffix("cosine") + "norm"]
        direct = metrics[key.split("/")[0] + "/direct_norm"]
        lengths = _norm(part), _norm(direct)
        unit = part / _one_if_zero(lengths[0]), direct / _one_if_zero(lengths[1])
        both_zero = (lengths[0] == 0) & (lengths[1] == 0)
        return jnp.where(both_zero, 1.0, jnp.sum(unit[0] * unit[1] * x, axis=0))
    return jnp.max(x, axis=0)


def _norm(parts: jax.Array) -> jax.Array:
    """Return the norm of norms along the first axis, also where squares overflow."""
    unit = _one_if_zero(jnp.max(parts, axis=0))
    return unit * jnp.sqrt(jnp.sum((parts / unit) ** 2, axis=0))


def _one_if_zero(x: jax.Array) -> jax.Array:
    return jnp.where((x > 0) & jnp.isfinite(x), x, 1)
