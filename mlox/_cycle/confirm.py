"""Confirm: how far a hypergradient is from that at answers a Newton step nearer."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.attach import prepare_point
from mlox._hypergradient.newton import one_step_more
from mlox._hypergradient.point import EvaluationPoint
from mlox._utils.tree import cosine, norm, ratio
from mlox._utils.types import PyTree

# At y - (dG/dy)^{-1} G, one Newton step away, the hypergradient is right to second
# order in the distance. So the difference of the two is the error of the first, and the
# length of the step is the distance, both to first order: one more solve tells them,
# and nothing has to be run to its end.


def confirm(
    plan: Plan,
    k: str,
    point: EvaluationPoint,
    differentiate: Callable[[EvaluationPoint], PyTree],
) -> dict[str, jax.Array]:
    """Return the distances of the answers, and what they do to the hypergradient.

    Args:
        plan: Which answers respond.
        k: The upper.
        point: Its point, with the answers as they are.
        differentiate: Prepared point -> the hypergradient of k.

    Returns:
        "k/lower/distance" for each block in which a Newton step is defined, and
        "k/norm_ratio" and "k/cosine" if there is any.
    """
    further = one_step_more(plan)
    blocks = [b for b in plan.responses[k].blocks if further(b, point)]
    if not blocks:
        return {}
    corrected = prepare_point(plan, k, point, further)
    here = differentiate(prepare_point(plan, k, point))
    there = differentiate(corrected)
    return {
        **{f"{k}/{b.tops[0]}/distance": _distance(b, point, corrected) for b in blocks},
        f"{k}/norm_ratio": ratio(norm(here), norm(there)),
        f"{k}/cosine": cosine(here, there),
    }


def _distance(b: Block, point: EvaluationPoint, other: EvaluationPoint) -> jax.Array:
    """Return the change of the parameters of a block, relative to their norm."""
    y, z = ({n: p.responsive(n) for n in b.names} for p in (point, other))
    return ratio(norm(jax.tree.map(jnp.subtract, z, y)), norm(y))
