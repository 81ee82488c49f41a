"""Derivatives of hypergradients: answers that carry their implicit derivative."""

from __future__ import annotations

import jax

from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.adjoint import hypergradient, solve_adjoint
from mlox._hypergradient.lagrangian import residual
from mlox._hypergradient.newton import Steps, configured_steps, follow, take_steps
from mlox._hypergradient.point import EvaluationPoint, Unknowns
from mlox.methods import attach_answer

# Two mechanisms give one derivative. The sweep of `adjoint.hypergradient` is explicit:
# so it can return the multipliers and the solvers' reports, which the transpose of a
# linear function cannot. But if that hypergradient is differentiated again, by a level
# above that is unrolled or by `jax.grad`, the answers below must respond to everything
# above. So every implicit answer is attached first: it keeps its value, and its
# derivative becomes that of the implicit function theorem. Without it the derivative of
# a hypergradient is silently wrong (48 % off on three levels). An attached answer that
# is not differentiated costs nothing.


def prepare_point(
    plan: Plan, k: str, point: EvaluationPoint, steps: Steps = configured_steps
) -> EvaluationPoint:
    """Return the point with multipliers of towers and attached answers below k.

    `steps` says how many Newton steps an answer makes before it is attached.
    """
    point = with_multipliers(plan, k, point)
    for b in plan.attached[k]:
        count = steps(b, point)
        if count:
            point = point.at(take_steps(plan, b, point, count).select(b))
        point = _attach_block(plan, b, point)
        if count:
            point = follow(plan, b, point)
    return point


def with_multipliers(plan: Plan, k: str, point: EvaluationPoint) -> EvaluationPoint:
    """Return the point with the values of the multipliers of all towers below k."""
    members = {n for b in plan.attached[k] for n in b.names}
    fixed = jax.lax.stop_gradient(point)
    # The multipliers of a tower are those of its own hypergradient. It needs the
    # multipliers of the towers below it: from the lowest to the highest.
    for tower in plan.graph.order:
        if tower in plan.towers and tower in members:
            found = hypergradient(plan, tower, fixed, replay=True)
            fixed = fixed.at(Unknowns({}, {tower: found.multipliers}))
    return point._replace(multipliers=fixed.multipliers)


def _attach_block(plan: Plan, b: Block, point: EvaluationPoint) -> EvaluationPoint:
    y = attach_answer(
        lambda y, point: residual(plan, b, y, point),
        lambda y, point, v: solve_adjoint(plan, b, v, point.at(y))[0],
        point.select(b),
        point,
    )
    return point.at(y)
