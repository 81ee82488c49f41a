"""Losses that hold a `jax.custom_vjp`: fused attention, fused losses, kernels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from mlox._graph.dependencies import Plan
from mlox._hypergradient.cost import cost
from mlox._hypergradient.point import EvaluationPoint
from mlox._problem.problem import Problem
from mlox._problem.responsive import responsive_part
from mlox._utils.programs import (
    equations,
    has_custom_vjp,
    is_custom_vjp,
    list_programs,
    without_constants,
)
from mlox._utils.tree import combine, vdot
from mlox._utils.types import Batches, PyTree, State
from mlox.methods import SAMA, FixedPoint, GaussNewton, Implicit, Unrolled

# A function with a custom_vjp has a derivative in reverse mode only. A pairing is the
# slope of a cost, taken in forward mode since it is differentiated once more,
#
#     <lambda, dC/dy> = jvp of C along lambda.
#
# Where the cost holds a rule it gets one for forward mode, which is made of reverse
# mode: dC = <dx, grad C> for all that it reads. Whatever differentiates *that* goes
# through the backward pass of the rule as if it were any program: it must be plain JAX.
#
# The rule is believed: the residual of the answer is the gradient that the optimizer
# sees. If it is not the true derivative (a straight-through estimator), dG/dy is not
# symmetric: see `mlox.Answer.by_rule`.


def forward_cost(plan: Plan, k: str, point: EvaluationPoint) -> jax.Array:
    """Return C_k, differentiable in forward mode, too."""
    value = lambda: cost(plan, k, point)[0]
    return _with_forward_mode(value) if k in plan.ruled else value()


def find_ruled(
    plan: Plan,
    cost: Callable[[State, Batches, str], jax.Array],
    program_of: Callable[[str], ClosedJaxpr],
    state: State,
    batches: Batches,
) -> frozenset[str]:
    """Return the responsive problems whose loss holds a `jax.custom_vjp`.

    `cost` evaluates the loss of a problem alone, and `program_of` returns its program.

    Raises:
        TypeError: If a method cannot go through such a rule.
    """
    found = frozenset(n for n in plan.responsive if has_custom_vjp(program_of(n)))
    for name in sorted(found):
        problem = state[name]

        def value(part: PyTree, problem: Problem = problem) -> jax.Array:
            params = combine(part, problem.params)
            moved = dataclasses.replace(problem, params=params)
            return cost({**state, problem.name: moved}, batches, problem.name)

        _check_rules(problem, value, program_of(name))
    return found


def _with_forward_mode(function: Callable[[], jax.Array]) -> jax.Array:
    """Return a scalar, with a derivative in forward mode made of that in reverse."""
    # What the function closes over are the constants of its program.
    closed = jax.make_jaxpr(function)()

    def program(*consts: Any) -> jax.Array:
        return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))()[0]

    value = jax.custom_jvp(program)

    def rule(
        primals: Sequence[Any], tangents: Sequence[Any]
    ) -> tuple[jax.Array, jax.Array]:
        dots = {i: d for i, d in enumerate(tangents) if not isinstance(d, SymbolicZero)}

        def at(moving: dict[int, jax.Array]) -> jax.Array:
            return program(*(moving.get(i, x) for i, x in enumerate(primals)))

        slopes = jax.grad(at)({i: primals[i] for i in dots})
        # The value itself: its derivatives are this rule again, at any order.
        found = value(*primals)
        return found, vdot(slopes, dots).astype(found.dtype)

    value.defjvp(rule, symbolic_zeros=True)
    return value(*closed.consts)


def _check_rules(
    problem: Problem, value: Callable[[PyTree], jax.Array], program: ClosedJaxpr
) -> None:
    """Raise TypeError if a method cannot go through the rules in a loss.

    Args:
        problem: A problem whose loss holds a `jax.custom_vjp`.
        value: The responsive part of its parameters -> its cost.
        program: The program of its cost.
    """
    method = problem.method
    if isinstance(method, GaussNewton):
        raise TypeError(
            f"loss_fn of problem {problem.name!r} calls a jax.custom_vjp, "
            f"{_name_rules(program)}, which has no forward mode, as the products of "
            f"{method} need. Use mlox.Implicit()."
        )
    exact = isinstance(method, FixedPoint | Implicit | Unrolled)
    if not exact and not (isinstance(method, SAMA) and method.epsilon is None):
        return
    part = responsive_part(problem, problem.params)
    slope = lambda x: vdot(jax.lax.stop_gradient(x), jax.grad(value)(x))
    try:
        jax.eval_shape(jax.grad(slope), part)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise TypeError(
            f"loss_fn of problem {problem.name!r} calls a jax.custom_vjp, "
            f"{_name_rules(program)}, whose backward pass cannot be differentiated, as "
            f"{method} does: {type(error).__name__}: {reason} Write the "
            "backward pass in plain JAX, or give the problem a method that does not "
            "differentiate it: mlox.FiniteDifference(), mlox.SAMA(epsilon=0.01) or "
            "mlox.Detached(); or replace the answer by mlox.penalty."
        ) from error


def _name_rules(program: ClosedJaxpr, most: int = 3) -> str:
    """Return where the functions with a custom_vjp in a program are written."""
    places = [
        str(without_constants(inner).debug_info.func_src_info).partition(" at ")
        for equation in equations(program)
        if is_custom_vjp(equation)
        for inner in list_programs(equation.params.values())
    ]
    names = (f"{name} at {os.path.basename(place)}" for name, _, place in places)
    return ", ".join([*dict.fromkeys(names)][:most])
