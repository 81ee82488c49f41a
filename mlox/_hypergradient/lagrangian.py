"""The Lagrangian L_k of a problem, and the residual G_b of a block of answers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax

from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient import game
from mlox._hypergradient.custom_rules import forward_cost
from mlox._hypergradient.full_precision import widen_cost
from mlox._hypergradient.point import EvaluationPoint, Unknowns
from mlox._hypergradient.tasks import count_tasks, map_tasks
from mlox._problem.responsive import responsive_state, stop_unresponsive
from mlox.methods import takes_difference

# For a problem k with movers B(k), the problems below it whose answers respond to it,
#
#     L_k = C_k - sum over the blocks b of B(k) of <lambda_b, G_b>,
#
# where G_b is the stationarity residual of the answers in b, and lambda_b its
# multiplier. A problem p that is not total answers to its cost: G_p = dC_p/dtheta_p. A
# total problem answers to L_p, in which its own lowers respond. Then the multipliers in
# L_p are unknowns of every problem above p, beside the parameters:
#
#     y_p = (theta_p, theta_c, lambda_c for each mover c of p),     G_p = dL_p/dy_p.
#
# The rows of lambda_c repeat G_c = 0, those of theta_c are the adjoint equation of p,
# and the row of theta_p is p's own hypergradient. So a whole tower is one system, whose
# matrix is the Hessian of the scalar L_p: products with it are `jax.jvp` of `jax.grad`,
# and nothing is solved inside a solve. For three levels t > p > c:
#
#     L_c = C_c,    L_p = C_p - <lambda_c, dC_c/dtheta_c>,    L_t = C_t - <lambda, G_p>.


def lagrangian(plan: Plan, k: str, point: EvaluationPoint) -> jax.Array:
    """Return L_k of a total problem, or C_k of one that is not."""
    if k not in plan.totals:
        return forward_cost(plan, k, point)
    response = plan.responses[k]
    point = replay_windows(plan, (*response.replayed, k), point)
    value = forward_cost(plan, k, point)
    for b in response.blocks:
        value -= pairing(plan, b, _select(b, point.multipliers[k]), point)
    return value


def pairing(
    plan: Plan, b: Block, multiplier: Unknowns, point: EvaluationPoint
) -> jax.Array:
    """Return <lambda_b, G_b>, evaluated as the method of the block's top does."""
    tasks = count_systems(plan, b, point)
    if tasks is not None:
        pair = lambda one, part: pairing(plan, b, part, one)
        return map_tasks(pair, tasks, point, multiplier).sum()
    method: Any = point.inputs[b.tops[0]].problem.method
    if takes_difference(method):
        point = widen_cost(plan, b.tops[0], point)
    if b.players:
        value = partial(lagrangian, plan)
        return game.pairing(method, b.players, multiplier, point, value)
    top, y = b.tops[0], point.select(b)
    return method.pairing(lambda y: lagrangian(plan, top, point.at(y)), y, multiplier)


def residual(plan: Plan, b: Block, y: Unknowns, point: EvaluationPoint) -> Unknowns:
    """Return G_b(y), of the structure of y."""
    point = point.at(y)
    if b.players:
        return game.residual(b.players, point, partial(lagrangian, plan))
    return jax.grad(lambda y: lagrangian(plan, b.tops[0], point.at(y)))(point.select(b))


def replay_windows(
    plan: Plan, names: Iterable[str], point: EvaluationPoint
) -> EvaluationPoint:
    """Replay the last windows of problems, so that their unrolled answers respond."""
    for name in names:
        unrolled, replay = plan.responses[name].unrolled, point.inputs[name].replay
        if unrolled and replay is not None:
            after = replay(point.params)
            problems = {n: point.inputs[n].problem for n in unrolled}
            moved = {
                n: stop_unresponsive(p, after[n].params) for n, p in problems.items()
            }
            read = plan.stateful.intersection(unrolled)
            states = {n: responsive_state(after[n]) for n in read}
            point = point._replace(params={**point.params, **moved}).at_states(states)
    return point


def count_systems(plan: Plan, b: Block, point: EvaluationPoint) -> int | None:
    """Return the number of tasks if each has a linear system of its own, or None."""
    return None if solves_together(plan, b) else count_tasks(b.names, point)


def solves_together(plan: Plan, b: Block) -> bool:
    """Return whether a residual replays a window, for all tasks together."""
    totals = plan.totals.intersection(b.names)
    return any(plan.responses[n].unrolled for n in totals)


def _select(b: Block, multipliers: Unknowns) -> Unknowns:
    """Return lambda_b among the multipliers of a problem."""
    return Unknowns(
        {n: multipliers.params[n] for n in b.names},
        {n: multipliers.multipliers[n] for n in b.towers},
    )
