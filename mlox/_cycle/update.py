"""One optimizer step of one problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlox._cycle.elsewhere import functions_elsewhere
from mlox._cycle.hyperparams import with_hyperparams
from mlox._cycle.overflow import can_overflow
from mlox._cycle.warmup import step_unless_waiting
from mlox._graph.dependencies import Plan
from mlox._hypergradient.adjoint import Hypergradient
from mlox._hypergradient.cost import cost
from mlox._hypergradient.point import EvaluationPoint
from mlox._hypergradient.tasks import losses_of
from mlox._problem.loss_scaling import all_finite, skip_overflow
from mlox._problem.optimizer import apply_gradients
from mlox._problem.problem import Problem
from mlox._problem.responsive import stop_unresponsive
from mlox._utils.types import Metrics, PyTree, State
from mlox.methods import Detached

Guard = Callable[[Problem, Problem, jax.Array], Problem]


class Update(NamedTuple):
    """The outcome of a step.

    Attributes:
        problem: The problem after.
        metrics: What its loss and its solvers report.
        finite: Whether its gradient was finite, which is computed only where a loss is
            scaled; elsewhere True.
    """

    problem: Problem
    metrics: Metrics
    finite: jax.Array


def update(
    plan: Plan,
    name: str,
    state: State,
    gradient: Callable[[], tuple[Hypergradient, PyTree]],
    point: Callable[[], EvaluationPoint],
) -> Update:
    """Make one optimizer step of a problem, unless it waits for one below.

    `gradient` returns its hypergradient, and the whole gradient with respect to its
    parameters; `point` returns the point of this step.
    """
    problem: Problem = state[name]
    checked = can_overflow(plan, name, state)
    guards = _find_guards(plan, problem, checked)

    def step() -> Update:
        found, grads = gradient()
        loss = losses_of(problem, found.metrics)
        finite = all_finite(grads) if checked else jnp.array(True)
        steered = with_hyperparams(plan, problem, point)
        functions = functions_elsewhere(plan, problem, point)
        after = apply_gradients(steered, grads, found.model_state, loss, functions)
        after = dataclasses.replace(after, memory=found.memory)
        for guard in guards:
            after = guard(problem, after, finite)
        return Update(after, found.metrics, finite)

    def wait() -> Update:
        # A problem that waits reports its loss, and zeros for its solvers.
        shapes = jax.eval_shape(step).metrics
        zeros = {key: jnp.zeros(x.shape, x.dtype) for key, x in shapes.items()}
        return Update(
            problem, {**zeros, **cost(plan, name, point())[1][0]}, jnp.array(True)
        )

    below = [state[n] for n in plan.graph.below[name]]
    return step_unless_waiting(below, step, wait)


def _find_guards(plan: Plan, problem: Problem, checked: bool) -> list[Guard]:
    """Return what follows the optimizer: functions (before, after, finite)."""
    guards: list[Guard] = []
    if checked:
        guards.append(skip_overflow)
    if isinstance(problem.method, Detached):
        guards.append(_pass_straight_through)
    if problem.name in plan.responsive:
        guards.append(_stop_unresponsive)
    return guards


def _pass_straight_through(
    before: Problem, after: Problem, finite: jax.Array
) -> Problem:
    """Return `after` with the derivative of `before` in its parameters."""
    del finite

    def pass_derivative(new: jax.Array, old: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(new) + (old - jax.lax.stop_gradient(old))

    # theta_{t+1} = theta_t + constant: the loop has the derivative one.
    params = jax.tree.map(pass_derivative, after.params, before.params)
    return dataclasses.replace(jax.lax.stop_gradient(after), params=params)


def _stop_unresponsive(before: Problem, after: Problem, finite: jax.Array) -> Problem:
    del before, finite
    return dataclasses.replace(after, params=stop_unresponsive(after, after.params))
