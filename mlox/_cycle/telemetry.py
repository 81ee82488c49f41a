"""Telemetry: of what a hypergradient is made, as metrics of each step."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp

from mlox._graph.dependencies import Plan
from mlox._hypergradient.adjoint import Hypergradient
from mlox._utils.tree import cosine, norm
from mlox._utils.types import PyTree

# The gradient of k is a direct part, at fixed answers, and an indirect one for each
# block of implicit answers, -d<lambda_b, G_b>/dtheta_k, and for the unrolled answers
# together, which one pull-back differentiates. (Those that are run again inside a
# residual respond inside the other parts.) Where the direct part is much longer than
# the others, or they point against it, their scale decides where the upper goes.
#
# All of it is there anyway, but for the norms. They are those of all tasks together.


def with_telemetry(
    plan: Plan, k: str, found: Hypergradient, grads: PyTree
) -> Hypergradient:
    """Return a hypergradient with metrics about its parts.

    "gradient_norm" and "nonfinite_entries", of the whole; "direct_norm", "lower/norm"
    and "lower/cosine", of the parts, if there is more than the direct one.
    """
    measured = {"gradient_norm": norm(grads), "nonfinite_entries": _count(grads)}
    parts = _indirect_parts(plan, k, found)
    if parts:
        measured["direct_norm"] = norm(found.direct)
    for lower, part in parts.items():
        measured[f"{lower}/norm"] = norm(part)
        measured[f"{lower}/cosine"] = cosine(part, found.direct)
    for key in sorted(measured.keys() & found.metrics.keys()):
        raise ValueError(
            f"loss_fn of problem {k!r} returned the metric {key!r}, which telemetry "
            "reports, too. Rename the metric, or build the engine without telemetry."
        )
    return found._replace(metrics={**found.metrics, **measured})


def _indirect_parts(plan: Plan, k: str, found: Hypergradient) -> dict[str, PyTree]:
    """Return the parts that flow through answers, by their highest problem."""
    parts = {
        lower: jax.tree.map(jnp.negative, slope)
        for lower, slope in found.pairings.items()
    }
    unrolled = plan.responses[k].unrolled
    return {**parts, unrolled[-1]: found.pulled} if unrolled else parts


def _count(tree: PyTree) -> jax.Array:
    """Return the number of entries that are not finite."""
    counts = [jnp.sum(~jnp.isfinite(x), dtype=jnp.int32) for x in jax.tree.leaves(tree)]
    return functools.reduce(operator.add, counts)
