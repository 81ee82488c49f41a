"""The residual of an answer whose Jacobian is the Gauss-Newton matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.lagrangian import residual
from mlox._hypergradient.point import EvaluationPoint, Unknowns
from mlox._problem.composed import is_composed, linearize_outputs

# With C(y) = l(f(y)) and the outputs linearized at the point y_0,
#
#     C~(y) = l(f(y_0) + J (y - y_0)),    dC~/dy = J^T dl/dz,    d^2C~/dy^2 = J^T H J:
#
# at y_0 the gradient is that of C, and products with the Hessian of C~ are Gauss-Newton
# products. So tasks, masks, loss scales and states need no second treatment. The point
# is no constant here: derivatives of a hypergradient see that the matrix moves with it.


def linearized_residual(
    plan: Plan, b: Block, point: EvaluationPoint
) -> Callable[[Unknowns], Unknowns] | None:
    """Return y -> dC~/dy; None if the loss gives no parts, or for several problems."""
    name = b.tops[0]
    inputs = point.inputs[name]
    if len(b.names) > 1 or not is_composed(inputs.problem.loss_fn):
        return None
    loss_fn = linearize_outputs(inputs.problem.loss_fn, point.params[name])
    linearized = dataclasses.replace(inputs.problem, loss_fn=loss_fn)
    there = point._replace(
        inputs={**point.inputs, name: inputs._replace(problem=linearized)}
    )
    return lambda y: residual(plan, b, y, there)
