"""Newton steps on answers: nearer to where their residuals are zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.adjoint import solve_adjoint
from mlox._hypergradient.lagrangian import replay_windows, residual
from mlox._hypergradient.point import EvaluationPoint, Unknowns
from mlox._problem.problem import Problem
from mlox.methods import Implicit, reach
from mlox.solvers import System

# At an answer y with the distance e = y - y* from the solved one, the hypergradient is
# wrong by O(e), however well its linear systems are solved: its terms are evaluated at
# the wrong place. One Newton step for each block, from the lowest to the highest,
#
#     y_b <- y_b - (dG_b/dy_b)^{-1} G_b,
#
# leaves a distance of O(e^2), and so does the hypergradient at the new place. The upper
# blocks are solved at the lower ones as corrected, so that errors do not add up along
# the graph. Each block is solved by its own method, as its adjoint system is.

Steps = Callable[[Block, EvaluationPoint], int]
"""The Newton steps on a block of answers before it is differentiated."""


def no_steps(b: Block, point: EvaluationPoint) -> int:
    """Return 0: the answers as they are."""
    del b, point
    return 0


def configured_steps(b: Block, point: EvaluationPoint) -> int:
    """Return the steps that the method of a block asks for."""
    return steps_of(point.inputs[b.tops[0]].problem)


def steps_of(problem: Problem) -> int:
    """Return the steps that the method of a problem asks for."""
    return problem.method.refine if isinstance(problem.method, Implicit) else 0


def one_step_more(plan: Plan) -> Steps:
    """Return the rule for one step more than configured, where steps are defined."""

    def steps(b: Block, point: EvaluationPoint) -> int:
        problems = {n: point.inputs[n].problem for n in b.names}
        correctable = why_not_stationary(plan, b, problems) is None
        return configured_steps(b, point) + 1 if correctable else 0

    return steps


def why_not_stationary(
    plan: Plan, b: Block, problems: Mapping[str, Problem]
) -> str | None:
    """Return why Newton steps do not approach an answer, and what to do, or None."""
    method = problems[b.tops[0]].method
    # The multiplier of such a method is no solution of the adjoint system, so its
    # transpose is no Newton step.
    if reach(method) is System.NONE:
        return f"{method} solves no linear system. Use a solver such as mlox.CG()."
    for n in b.names:
        # The steps of n follow its total gradient, but its residual is the partial one,
        # which is not zero where they end.
        if plan.movers[n] and n not in plan.totals:
            return (
                f"the residual of {n!r} holds its lowers fixed, while its own steps do "
                "not: it is not zero at the answer. Use coupling='total', and methods "
                "that solve for towers."
            )
        # Where the constraint is active, the residual is not zero.
        if problems[n].project is not None:
            return (
                f"{n!r} has project=, so that its residual need not be zero at its "
                "answer. Put the constraint into the loss, e.g. by another "
                "parametrization."
            )
    return None


def take_steps(
    plan: Plan, b: Block, point: EvaluationPoint, count: int
) -> EvaluationPoint:
    """Return the point after some Newton steps on a block; constants."""
    point = jax.lax.stop_gradient(point)
    for _ in range(count):
        y = point.select(b)
        step = _solve(plan, b, residual(plan, b, y, point), point)
        point = point.at(jax.tree.map(jnp.subtract, y, step))
    return point


def follow(plan: Plan, b: Block, point: EvaluationPoint) -> EvaluationPoint:
    """Return the point with the unrolled answers that respond to a block, moved."""
    return replay_windows(plan, (n for n in b.names if n in plan.replayed), point)


def _solve(plan: Plan, b: Block, G: Unknowns, point: EvaluationPoint) -> Unknowns:
    """Return (dG_b/dy_b)^{-1} G."""
    if b.system <= System.SYMMETRIC and plan.ruled.isdisjoint(b.names):
        return solve_adjoint(plan, b, G, point)[0]
    # A method solves the adjoint system, v -> (dG/dy)^{-T} v: transpose that.
    zeros = jax.tree.map(jnp.zeros_like, G)
    inverse = jax.vjp(lambda v: solve_adjoint(plan, b, v, point)[0], zeros)[1]
    return inverse(G)[0]
