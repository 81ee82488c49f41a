"""Warnings about optimizers some of whose first updates have no derivative."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mlox._graph.dependencies import Plan
from mlox._problem.optimizer import apply_gradients, pull_step, restart
from mlox._problem.problem import Problem
from mlox._problem.responsive import responsive_part
from mlox._utils.programs import equations
from mlox._utils.warn import warn
from mlox.methods import SAMA, FixedPoint, Unrolled

# The case is `optax.radam` (0.2.8). Until the variance of its step sizes is tractable
# it takes the other branch of a `where`, but the factor of the one that is not taken,
#
#     r = sqrt((ro - 4) (ro - 2) ro_inf / ((ro_inf - 4) (ro_inf - 2) ro)),
#
# is the root of a negative number for 2 < ro < 4, and reverse mode multiplies it by the
# zero cotangent of that branch: NaN. The root of where(ro >= threshold, ..., 1) would
# have the same updates, and derivatives. Forward mode has no NaN.
TRIED = 6


def warn_if_first_updates_have_no_slope(
    plan: Plan, problems: Sequence[Problem]
) -> None:
    """Warn if an update that is differentiated has no derivative at any gradient."""
    for problem in problems:
        if not isinstance(problem.method, Unrolled | SAMA | FixedPoint):
            continue
        if problem.name not in plan.responsive or not _takes_root_of_number(problem):
            continue
        broken = [n for n in find_broken_updates(problem) if _meets(problem, n)]
        if broken:
            numbers = " and ".join(map(str, broken))
            warn(
                f"problem {problem.name!r} is {type(problem.method).__name__}, but the "
                f"derivative of update {numbers} of its optimizer is NaN at any "
                "gradient (optax.radam: the root of a negative number, in the branch "
                "that is not taken), and so is the hypergradient there. Use "
                f"optax.nadam or optax.adam,{_remedy(problem, broken)} or use "
                "mlox.Implicit()."
            )


def find_broken_updates(problem: Problem) -> list[int]:
    """Return which of the first updates, from 1, have a derivative that is NaN."""
    plain = dataclasses.replace(problem, project=None, loss_scale=None)
    gradient = jax.tree.map(jnp.ones_like, problem.params)
    ones = responsive_part(problem, gradient)
    loss = jnp.ones(() if problem.tasks is None else (problem.tasks,))

    def update(current: Problem, _: None) -> tuple[Problem, jax.Array]:
        slopes = jax.tree.leaves(pull_step(current, gradient, ones, loss)[0])
        broken = jnp.stack([jnp.isnan(x).any() for x in slopes]).any()
        moved = apply_gradients(current, gradient, current.model_state, loss)
        return moved, broken

    first = restart(plain, problem.params)
    broken = jax.jit(lambda p: jax.lax.scan(update, p, length=TRIED)[1])(first)
    return [i + 1 for i in range(TRIED) if bool(broken[i])]


def _takes_root_of_number(problem: Problem) -> bool:
    """Return whether an update has the root of one number; nothing is compiled."""
    loss = jnp.ones(() if problem.tasks is None else (problem.tasks,))
    plain = dataclasses.replace(problem, project=None)
    program = jax.make_jaxpr(
        lambda p: apply_gradients(p, p.params, p.model_state, loss).params
    )(plain)
    most = 0 if problem.tasks is None else 1
    return any(
        e.primitive.name == "sqrt" and len(e.outvars[0].aval.shape) <= most
        for e in equations(program)
    )


def _meets(problem: Problem, number: int) -> bool:
    """Return whether some step of an upper differentiates an update of that number."""
    steps = problem.unroll_steps
    # The first step of an upper comes after so many updates; `reset` starts them anew.
    first = steps * (problem.warmup_steps // steps + 1)
    if problem.reset is not None:
        first = steps
    if isinstance(problem.method, Unrolled):
        return first - steps < number and (problem.reset is None or number <= steps)
    after = number - 1
    return after == first or (
        problem.reset is None and after > first and after % steps == 0
    )


def _remedy(problem: Problem, broken: list[int]) -> str:
    """Return what lets the uppers wait until later updates, if something does."""
    if problem.reset is not None:
        return ""
    return f" pass warmup_steps={broken[-1] + problem.unroll_steps - 1} to it,"
