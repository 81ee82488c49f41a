"""The Lagrangian L_k of a problem, and the residual G_b of a block of answers.

For a problem k with movers B(k), the problems below it whose answers respond to it,

    L_k = C_k - sum over the blocks b of B(k) of <lambda_b, G_b>,

where G_b is the stationarity residual of the answers in b, and lambda_b its multiplier.
A total problem p answers to L_p instead of C_p: so its multipliers are unknowns, beside
its parameters, of every problem above, y_b = (theta, lambda), and G_b = dL_p/dy_b.
Products with dG_b/dy_b then are Hessian-vector products of one scalar function, and
nothing is solved inside a solve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax

from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient import game
from mlox._hypergradient.cost import cost
from mlox._hypergradient.point import EvaluationPoint, Unknowns
from mlox._hypergradient.tasks import count_tasks, map_tasks
from mlox._problem.responsive import stop_unresponsive


def lagrangian(plan: Plan, k: str, point: EvaluationPoint) -> jax.Array:
    """Return L_k of a total problem, or C_k of one that is not."""
    if k not in plan.totals:
        return cost(plan, k, point)[0]
    response = plan.responses[k]
    point = replay_windows(plan, (*response.replayed, k), point)
    value = cost(plan, k, point)[0]
    for b in response.blocks:
        value -= pairing(plan, b, select_multipliers(b, point.multipliers[k]), point)
    return value


def pairing(
    plan: Plan, b: Block, multiplier: Unknowns, point: EvaluationPoint
) -> jax.Array:
    """Return <lambda_b, G_b>, evaluated as the method of the block's top does."""
    tasks = count_separate_systems(plan, b, point)
    if tasks is not None:
        return map_tasks(
            lambda one, part: pairing(plan, b, part, one), tasks, point, multiplier
        ).sum()
    method: Any = point.inputs[b.tops[0]].problem.method
    if b.players:
        return game.pairing(method, b.players, multiplier, point, _of(plan))
    top, y = b.tops[0], point.select(b)
    return method.pairing(lambda y: lagrangian(plan, top, point.at(y)), y, multiplier)


def residual(plan: Plan, b: Block, y: Unknowns, point: EvaluationPoint) -> Unknowns:
    """Return G_b(y), of the structure of y."""
    point = point.at(y)
    if b.players:
        return game.residual(b.players, point, _of(plan))
    return jax.grad(lambda y: lagrangian(plan, b.tops[0], point.at(y)))(point.select(b))


def replay_windows(
    plan: Plan, names: Iterable[str], point: EvaluationPoint
) -> EvaluationPoint:
    """Let unrolled answers respond, by running the last windows of problems again."""
    for name in names:
        unrolled, replay = plan.responses[name].unrolled, point.inputs[name].replay
        if unrolled and replay is not None:
            found = replay(point.params)
            moved = {
                n: stop_unresponsive(point.inputs[n].problem, found[n])
                for n in unrolled
            }
            point = point._replace(params={**point.params, **moved})
    return point


def count_separate_systems(plan: Plan, b: Block, point: EvaluationPoint) -> int | None:
    """Return the number of tasks, if each has a linear system of its own."""
    # A window that is run again in a residual is run for all tasks together.
    totals = plan.totals.intersection(b.names)
    if any(plan.responses[n].unrolled for n in totals):
        return None
    return count_tasks(b.names, point)


def select_multipliers(b: Block, multipliers: Unknowns) -> Unknowns:
    """Return lambda_b among the multipliers of a problem."""
    return Unknowns(
        {n: multipliers.params[n] for n in b.names},
        {n: multipliers.multipliers[n] for n in b.towers},
    )


def _of(plan: Plan) -> Callable[[str, EvaluationPoint], jax.Array]:
    return lambda k, point: lagrangian(plan, k, point)
