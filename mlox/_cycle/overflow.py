"""Overflow of scaled losses: whose gradients are checked, and whose scales adapt."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from mlox._graph.dependencies import Plan
from mlox._problem.loss_scaling import back_off
from mlox._problem.problem import Problem
from mlox._utils.types import State

# A gradient that is not finite may come from its own loss scale, or from that of any
# mover whose loss takes part in it. So the update is skipped, and all of these scales
# are lowered; only a problem's own gradient lets its scale grow again.


def scaled_movers(plan: Plan, name: str, state: State) -> list[str]:
    """Return the movers of a problem whose losses are scaled."""
    return [n for n in plan.movers[name] if state[n].loss_scale is not None]


def can_overflow(plan: Plan, name: str, state: State) -> bool:
    """Return whether a scaled loss takes part in the gradient of a problem."""
    own = state[name].loss_scale is not None
    return own or bool(scaled_movers(plan, name, state))


def back_off_movers(
    plan: Plan, state: State, finite: Mapping[str, jax.Array]
) -> dict[str, Problem]:
    """Return the scaled movers of uppers, with lower scales after an overflow.

    `finite` has, for each upper, whether its gradient was finite.
    """
    lowered: dict[str, Problem] = {}
    for upper, was_finite in finite.items():
        for n in scaled_movers(plan, upper, state):
            problem: Problem = lowered[n] if n in lowered else state[n]
            lowered[n] = back_off(problem, was_finite)
    return lowered
