"""The point at which a cost is computed in float32 or wider, for differences of it."""

from __future__ import annotations

import dataclasses

from mlox._graph.dependencies import Plan
from mlox._hypergradient.point import Constant, EvaluationPoint
from mlox._problem.loss_transforms import in_full_precision, widen_tree

# A central difference moves the parameters by epsilon in all. In half precision most of
# them do not move at all, and the costs at both ends agree in all their digits: with
# the default epsilon a third of the derivative is lost, or all of it. So both costs are
# computed from parameters and data in float32, without the casts of `MixedPrecision`.
# Casts of a loss's own stay.


def widen_cost(plan: Plan, name: str, point: EvaluationPoint) -> EvaluationPoint:
    """Return the point at which the cost of a problem is in full precision."""
    inputs = point.inputs[name]
    constants = {
        n: Constant(*widen_tree(tuple(seen))) for n, seen in inputs.constants.items()
    }
    wide = inputs._replace(
        problem=dataclasses.replace(
            inputs.problem, loss_fn=in_full_precision(inputs.problem.loss_fn)
        ),
        batch=widen_tree(inputs.batch),
        model_state=widen_tree(inputs.model_state),
        constants=constants,
    )
    read = {n: point.params[n] for n in (name, *plan.graph.neighbours(name))}
    return point._replace(
        params={**point.params, **widen_tree(read)},
        inputs={**point.inputs, name: wide},
    )
