"""The update map of a block's top: the transpose of its optimizer's next step."""

from __future__ import annotations

import dataclasses

import jax

from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.cost import cost
from mlox._hypergradient.lagrangian import lagrangian
from mlox._hypergradient.point import EvaluationPoint, Unknowns
from mlox._problem import optimizer
from mlox._utils.tree import add_scaled, avoid_zero
from mlox._utils.types import PyTree
from mlox.methods import Answer, transposed_product

# With the gradient g of the top and the update u of its optimizer, whose state is held
# fixed, the map is
#
#     T(theta) = theta + u(g(theta), theta),
#     dT/dtheta = I + du/dtheta + du/dg dg/dtheta.
#
# The last factor is the matrix of the answer, dG/dy.


def pull_update(
    plan: Plan, b: Block, point: EvaluationPoint, vector: Unknowns
) -> Unknowns:
    """Return (du/dg)^T vector."""
    pulled, _ = _pull(plan, b.tops[0], point, vector)
    return pulled


def pull_step(
    plan: Plan, b: Block, point: EvaluationPoint, answer: Answer, vector: Unknowns
) -> Unknowns:
    """Return (dT/dtheta)^T vector, for a block of one problem."""
    pulled, kept = _pull(plan, b.tops[0], point, vector)
    return add_scaled(kept, 1.0, transposed_product(answer)(pulled))


def _pull(
    plan: Plan, top: str, point: EvaluationPoint, vector: Unknowns
) -> tuple[Unknowns, Unknowns]:
    """Return (du/dg)^T vector and (I + du/dtheta)^T vector."""
    problem = point.inputs[top].problem

    def value(params: PyTree) -> jax.Array:
        return lagrangian(plan, top, point.at_params({top: params}))

    # Of all parameters: an optimizer may couple those that respond with the others.
    slopes = jax.grad(value)(point.params[top])
    # Adam's square root has no derivative at zero: evaluate it beside.
    gradient = jax.tree.map(avoid_zero, slopes)
    problem = dataclasses.replace(problem, params=point.params[top])
    loss = cost(plan, top, point)[0]
    pulled = optimizer.pull_step(problem, gradient, vector.params[top], loss)
    first, second = (Unknowns({top: part}, {}) for part in pulled)
    return first, second
