"""The answer of a block, as its method sees it."""

from __future__ import annotations

import jax

from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.cost import cost
from mlox._hypergradient.draws import draws_of
from mlox._hypergradient.gauss_newton import linearized_residual
from mlox._hypergradient.lagrangian import residual
from mlox._hypergradient.point import EvaluationPoint, Unknowns
from mlox._problem.optimizer import pull_update
from mlox._utils.tree import avoid_zero
from mlox.methods import Answer


def make_answer(plan: Plan, b: Block, point: EvaluationPoint) -> Answer:
    """Return the answer of a block at a point."""
    y = point.select(b)
    return Answer(
        point=y,
        residual=lambda y: residual(plan, b, y, point),
        system=b.system,
        pull_update=lambda vector: _pull_update(plan, b, y, point, vector),
        by_rule=not plan.ruled.isdisjoint(b.names),
        linearized=linearized_residual(plan, b, point),
        draws=draws_of(plan, b, point),
    )


def _pull_update(
    plan: Plan, b: Block, y: Unknowns, point: EvaluationPoint, vector: Unknowns
) -> Unknowns:
    """Return (du/dg)^T vector for the next update of the optimizer of a block's top."""
    top = point.inputs[b.tops[0]].problem
    slopes = residual(plan, b, y, point).params[top.name]
    # Adam's square root has no derivative at zero: evaluate it beside.
    gradient = jax.tree.map(avoid_zero, slopes)
    loss = cost(plan, top.name, point)[0]
    pulled = pull_update(top, gradient, vector.params[top.name], loss)
    return Unknowns({top.name: pulled}, {})
