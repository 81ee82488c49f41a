"""Hyperparams: optimizers whose numbers are functions of the problems above."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from mlox._graph.dependencies import Plan
from mlox._hypergradient.attach import prepare_point
from mlox._hypergradient.cost import context_of
from mlox._hypergradient.point import EvaluationPoint, present_point
from mlox._hypergradient.tasks import map_if_tasks
from mlox._problem.hyperparams import (
    Chosen,
    Injected,
    choose_hyperparams,
    find_injected,
    name_hyperparams,
    set_hyperparams,
)
from mlox._problem.problem import Problem
from mlox._utils.depends import depends
from mlox._utils.describe import annotate_errors
from mlox._utils.types import Params, State

# With an update u(g, h) of hyperparameters h the loop of an unrolled answer is
#
#     y_{t+1} = y_t + u(grad C(y_t, x), h(x, t)),
#
# and h is computed inside what its pull-back differentiates. A stationary answer,
# G(y, x) = 0, does not depend on h: its implicit derivative has no such part.


def with_hyperparams(
    plan: Plan, problem: Problem, point: Callable[[], EvaluationPoint]
) -> Problem:
    """Return a problem whose optimizer has the numbers for its next step.

    `point` returns the point of that step.
    """
    if problem.hyperparams is None:
        return problem
    # What is read of answers below must respond to the problems above.
    prepared = prepare_point(plan, problem.name, point())
    chosen = read_hyperparams(plan, problem.name, prepared)
    return dataclasses.replace(
        problem, opt_state=set_hyperparams(problem.opt_state, chosen)
    )


def read_hyperparams(plan: Plan, name: str, point: EvaluationPoint) -> Chosen:
    """Return what `hyperparams` of a problem makes of a point, checked; for each task.

    Raises:
        TypeError, ValueError: See `choose_hyperparams`.
    """

    def read(one: EvaluationPoint) -> Chosen:
        problem = one.inputs[name].problem
        hyperparams: Any = problem.hyperparams
        ctx = context_of(plan, name, one)
        with annotate_errors(f"hyperparams of problem {name!r}", rng=ctx.rng):
            returned = hyperparams(ctx)
        return choose_hyperparams(name, injected_of(problem), returned)

    return map_if_tasks(read, name, point)


def injected_of(problem: Problem) -> list[Injected]:
    """List the places in the state of an optimizer that `hyperparams` can set."""
    return find_injected(problem.opt_state, problem.trainable is not None)


@dataclass(frozen=True)
class Steering:
    """What `hyperparams` of a problem does.

    Attributes:
        sets: The names of what it sets, such as "learning_rate".
        reads: The neighbours whose parameters it reads.
        constants: The problems that it reads as constants.
    """

    sets: tuple[str, ...]
    reads: tuple[str, ...]
    constants: tuple[str, ...]


def find_steering(plan: Plan, name: str, problems: State) -> Steering:
    """Return what `hyperparams` of a problem sets and reads; it is traced, not run.

    Raises:
        TypeError, ValueError: See `choose_hyperparams`.
    """
    if problems[name].hyperparams is None:
        return Steering((), (), ())
    seen = plan.graph.reads(name)
    # Shapes are enough, also of a state that was donated.
    state = jax.eval_shape(lambda x: x, {n: problems[n] for n in (name, *seen)})

    def read(params: Params, state: State) -> Chosen:
        keys = {n: problem.rng for n, problem in state.items()}
        moved = {n: dataclasses.replace(state[n], params=x) for n, x in params.items()}
        point = present_point(plan.graph, {**state, **moved}, keys)
        return read_hyperparams(plan, name, point)

    chosen = jax.eval_shape(read, {}, state)
    used = [n for n in seen if depends(read, {n: state[n].params}, state)]
    constants = plan.graph.constants(name)
    return Steering(
        tuple(name_hyperparams(injected_of(state[name]), chosen)),
        tuple(n for n in used if n not in constants),
        tuple(n for n in used if n in constants),
    )
