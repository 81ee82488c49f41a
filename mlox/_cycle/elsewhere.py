"""Elsewhere: cost and gradient of a step at other parameters, for its optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from mlox._graph.dependencies import Plan
from mlox._hypergradient.adjoint import hypergradient
from mlox._hypergradient.attach import prepare_point
from mlox._hypergradient.cost import cost
from mlox._hypergradient.point import EvaluationPoint
from mlox._hypergradient.tasks import separate_tasks
from mlox._problem.masked import fill_masked, mask_like
from mlox._problem.problem import Problem
from mlox._problem.transformation import Functions
from mlox._utils.types import PyTree

# At other parameters theta_k of a problem k the batch, the key and the neighbours stay,
# and so do the answers below k: the hypergradient there is
#
#     d/dtheta_k [C_k - <lambda, G>]    with    (dG/dy)^T lambda = dC_k/dy,
#
# all at the new theta_k and the old y, with the memories of methods as they are. The
# loop of an unrolled answer would have to be run again; and the loss at old answers is
# no function of which this is the gradient, so that no line search can go by it.


def functions_elsewhere(
    plan: Plan, problem: Problem, point: Callable[[], EvaluationPoint]
) -> Functions:
    """Return `value_fn` and `grad_fn` of a step, see `mlox._problem.transformation`.

    Nothing is computed before they are called, but for tasks: `point` returns the point
    of the step.
    """
    name, movers = problem.name, sorted(plan.movers[problem.name])

    def value_at(point: EvaluationPoint, params: PyTree) -> jax.Array:
        if movers:
            raise ValueError(_no_value(name, movers))
        there = fill_masked(params, point.params[name])
        return cost(plan, name, point.at_params({name: there}))[0]

    def grad_at(point: EvaluationPoint, params: PyTree) -> PyTree:
        run_again = sorted(plan.responses[name].unrolled)
        if lowers := movers if problem.tasks else run_again:
            raise ValueError(_no_gradient(name, lowers))
        there = fill_masked(params, point.params[name])
        point = point.at_params({name: there})
        found = hypergradient(plan, name, point, replay=False)
        return mask_like(params, found.cotangents[name])

    def here() -> EvaluationPoint:
        return prepare_point(plan, name, point())

    point_of: Callable[..., EvaluationPoint] = here
    arrays: Any = ()
    if problem.tasks is not None and not movers:
        # The arrays of tasks ride along, so that `jax.vmap` maps functions, too.
        point_of, arrays = separate_tasks(problem.tasks, here())

    def value_fn(arrays: Any, params: PyTree, grad_fn: Any = None) -> jax.Array:
        # Line searches of optax hand what they do not know on to `value_fn`, and raise
        # unless it names it.
        del grad_fn
        return value_at(point_of(*arrays), params)

    def grad_fn(arrays: Any, params: PyTree) -> PyTree:
        return grad_at(point_of(*arrays), params)

    return {
        "value_fn": jax.tree_util.Partial(value_fn, arrays),
        "grad_fn": jax.tree_util.Partial(grad_fn, arrays),
    }


def _no_value(name: str, lowers: list[str]) -> str:
    return (
        f"problem {name!r}: tx called value_fn, as a line search does, but the loss at "
        f"other parameters has other answers of {lowers}, which are not run again. Use "
        "an optimizer without a line search, e.g. optax.lbfgs(learning_rate=0.1, "
        "linesearch=None)."
    )


def _no_gradient(name: str, lowers: list[str]) -> str:
    return (
        f"problem {name!r}: tx called grad_fn, but the gradient at other parameters "
        f"flows through answers of {lowers}, which are not run again. Use implicit "
        f"methods for {lowers}, without tasks= of {name!r}, or an optimizer that does "
        "not need it, such as optax.ema before optax.sgd."
    )
