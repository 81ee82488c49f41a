"""The adjoint: multipliers of blocks, and the hypergradient that they lead to."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.answer import make_answer
from mlox._hypergradient.constraints import project_cotangent, project_multiplier
from mlox._hypergradient.cost import cost
from mlox._hypergradient.lagrangian import (
    count_systems,
    pairing,
    replay_windows,
)
from mlox._hypergradient.memory import recall, remember
from mlox._hypergradient.overflow import mark_overflow
from mlox._hypergradient.point import EvaluationPoint, Unknowns
from mlox._hypergradient.slopes_of_cost import slopes_of_cost
from mlox._hypergradient.tasks import map_tasks
from mlox._hypergradient.underflow import (
    from_units,
    in_units,
    slopes_in_units,
    unit_of,
)
from mlox._problem.responsive import responsive_state
from mlox._utils.describe import annotate_errors, show_differences
from mlox._utils.tree import shard_like
from mlox._utils.types import Metrics, Params, PyTree
from mlox.methods import call_multiplier
from mlox.solvers import Info

# The hypergradient of k is the partial derivative of its Lagrangian L_k, at fixed
# answers and multipliers. L_k is stationary in the multipliers, as G_b = 0; they are
# chosen to make it stationary in the answers y_b of every block, too:
#
#     (dG_b/dy_b)^T lambda_b = v_b,    v_b = dC_k/dy_b - sum over the blocks a above b
#                                            of d<lambda_a, G_a>/dy_b.
#
# Then whatever moves with theta_k moves L_k in first order through theta_k alone:
#
#     d/dtheta_k C_k(theta_k, y(theta_k)) = dC_k/dtheta_k
#                                           - sum_b d<lambda_b, G_b>/dtheta_k.
#
# One sweep from the highest block to the lowest visits every edge of the graph once;
# a sum over the paths of the graph would be exponential in its depth.
#
# An answer that is not solved has G_b != 0. As L_k is stationary in the answers, and
# equals C_k at the solved ones, to first order
#
#     C_k(theta_k, y) - C_k(theta_k, y(theta_k)) = sum_b <lambda_b, G_b>,
#
# the dual-weighted residual of finite elements (Becker and Rannacher, An optimal
# control approach to a posteriori error estimation, 2001). Its terms are the values of
# the pairings that are differentiated anyway: the *gap* of each block.


class Hypergradient(NamedTuple):
    """The outcome of one hypergradient.

    Attributes:
        metrics: What the loss returned, the solvers' reports, and the gaps.
        model_state: The mutable state after.
        cotangents: The gradient of the problem, and what arrived at the unrolled
            answers that respond through its own window.
        states: What arrived at the mutable states of these answers.
        multipliers: The multipliers lambda of its implicit movers.
        direct: The slope of its cost at fixed answers.
        pairings: For each block, by its top, the slope of the pairing, which is
            subtracted.
        memory: What its methods keep for its next step, see `Problem`.
        pulled: What was pulled back through its window, and added; None before that.
    """

    metrics: Metrics
    model_state: PyTree
    cotangents: dict[str, PyTree]
    states: dict[str, PyTree]
    multipliers: Unknowns
    direct: PyTree
    pairings: dict[str, PyTree]
    memory: PyTree
    pulled: PyTree = None


def hypergradient(
    plan: Plan, k: str, point: EvaluationPoint, *, replay: bool
) -> Hypergradient:
    """Differentiate L_k with respect to theta_k, at fixed answers and multipliers.

    If `replay` is true, the unrolled answers of k respond by running its last window
    again. If not, their cotangents are returned, for the pull-back of that window.
    """
    response = plan.responses[k]
    windows = (*response.replayed, *((k,) if replay else ()))
    responding = (*response.implicit, *(() if replay else response.unrolled))
    theta = {n: point.responsive(n) for n in responding} | {k: point.params[k]}
    states = {
        n: responsive_state(point.inputs[n].problem)
        for n in plan.stateful.intersection(responding)
    }

    def at(theta: Params, states: Params) -> EvaluationPoint:
        there = point.at_params(theta).at_states(states)
        return replay_windows(plan, windows, there)

    # v_j = dC_k/dtheta_j for theta_k and everything that responds to it: parameters,
    # and the mutable states of unrolled answers that somebody reads.
    (v, of_states), (metrics, model_state) = slopes_of_cost(
        plan,
        point.inputs[k].problem,
        lambda theta, states: cost(plan, k, at(theta, states)),
        theta,
        states,
    )
    direct, pairings, multipliers = v[k], {}, Unknowns({}, {})
    memory = point.inputs[k].problem.memory
    for b in reversed(response.blocks):
        # (dG_b/dy)^T lambda_b = v_b: what has arrived at the answers of the block ...
        v_b = _at_unknowns(b, {n: v[n] for n in b.names}, point)
        before, members = recall(k, b, point), (k, *b.names)
        unit = unit_of(members, point, v_b) if before is None else None
        lam, kept, report = solve_adjoint(plan, b, in_units(unit, v_b), point, before)
        memory = remember(memory, b, kept)
        # ... leaves as -d<lambda_b, G_b>/dtheta_j at everything that G_b reads.
        v = {n: slope for n, slope in v.items() if n not in b.names}
        reads = v.keys() if windows else v.keys() & plan.reads_of(b)
        value, (d_pairing, d_states) = slopes_in_units(
            lambda lam, *theta, b=b: pairing(plan, b, lam, at(*theta)),
            (unit, unit_of(members, point, lam)),
            lam,
            ({n: theta[n] for n in v if n in reads}, states),
        )
        lam = from_units(unit, lam)
        v |= {n: jax.tree.map(jnp.subtract, v[n], d) for n, d in d_pairing.items()}
        of_states = jax.tree.map(jnp.subtract, of_states, d_states)
        if k in reads:
            pairings |= {b.tops[0]: d_pairing[k]}
        multipliers = Unknowns(
            {**multipliers.params, **lam.params},
            {**multipliers.multipliers, **lam.multipliers},
        )
        # Losses are means over tasks, and L_k is a sum.
        report = {**report, "gap": value / (point.inputs[k].problem.tasks or 1)}
        metrics |= _name_report(k, b.tops[0], report, metrics)
    return Hypergradient(
        metrics, model_state, v, of_states, multipliers, direct, pairings, memory
    )


def solve_adjoint(
    plan: Plan, b: Block, v: Unknowns, point: EvaluationPoint, memory: PyTree = None
) -> tuple[Unknowns, PyTree, Info]:
    """Return lambda_b of (dG_b/dy)^T lambda_b = v, the memory after, and a report.

    Without a memory, lambda_b is linear in v.
    """
    tasks = count_systems(plan, b, point)
    if tasks is not None:
        solve = lambda one, *parts: solve_adjoint(plan, b, parts[0], one, parts[1])
        lam, kept, report = map_tasks(solve, tasks, point, v, memory)
        return lam, kept, {key: jnp.max(x, axis=0) for key, x in report.items()}
    top = point.inputs[b.tops[0]].problem
    method: Any = top.method
    answer = make_answer(plan, b, point)
    with annotate_errors(f"method of problem {top.name!r}, {method}"):
        cotangent = shard_like(v, answer.point, never=top.step < 0)
        rhs = project_cotangent(answer, cotangent)
        lam, kept, report = call_multiplier(method, answer, rhs, memory)
        _check_multiplier(lam, report, v)
        lam = mark_overflow(answer, method, rhs, lam, point)
    lam, report = project_multiplier(answer, cotangent, rhs, lam, report)
    return lam, kept, report


def _at_unknowns(b: Block, params: Params, point: EvaluationPoint) -> Unknowns:
    """Return the cotangent of a block: no cost reads a multiplier, so zeros there."""
    multipliers = {n: point.multipliers[n] for n in b.towers}
    return Unknowns(dict(params), jax.tree.map(jnp.zeros_like, multipliers))


def _check_multiplier(lam: Any, report: Info, cotangent: Unknowns) -> None:
    """Raise ValueError unless a multiplier is like the cotangent."""
    if "gap" in report:
        raise ValueError(
            "multiplier returned a report with the key 'gap', under which the engine "
            "reports the value of the pairing. Choose another key."
        )
    if _shapes(lam) != _shapes(cotangent):
        raise ValueError(
            "multiplier returned a pytree that differs from the cotangent: "
            f"{show_differences(lam, cotangent)}. Return one like the cotangent."
        )


def _shapes(tree: PyTree) -> tuple[Any, list[tuple[int, ...]]]:
    return jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


def _name_report(k: str, lower: str, report: Info, metrics: Metrics) -> Metrics:
    """Return the report on an answer as metrics of the upper k, "lower/key"."""
    named = {f"{lower}/{key}": jnp.asarray(x) for key, x in report.items()}
    for key in sorted(set(named).intersection(metrics)):
        raise ValueError(
            f"loss_fn of problem {k!r} returned the metric {key!r}, which is the name "
            f"of a report on the answer of {lower!r}. Rename the metric."
        )
    return named
