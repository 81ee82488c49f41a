"""What problems do besides their losses: sample batches, start inner loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from mlox._hypergradient.lagrangian import Objective
from mlox._hypergradient.point import EvaluationPoint
from mlox._problem.context import annotate_errors
from mlox._problem.optimizer import restart
from mlox._problem.problem import Problem
from mlox._utils.describe import find_non_array
from mlox._utils.tree import strip_weak_type
from mlox._utils.types import PyTree, State

# Streams of random keys that no count of steps reaches: see `_present`.
RESET, SAMPLE = 2**32 - 1, 2**32 - 2


def begun(objective: Objective, layer: int, state: State) -> dict[str, Problem]:
    """Start the inner loops that a window of a layer holds."""
    graph = objective.plan.graph
    beginning = [
        n
        for n in graph.beneath(layer)
        if state[n].reset is not None and graph.inner_layer[n] == layer
    ]
    values = _present(state, RESET)
    return {**state, **{n: restarted(objective, n, values) for n in beginning}}


def restarted(objective: Objective, name: str, values: EvaluationPoint) -> Problem:
    """Return a problem at the start of an inner loop, as `reset` has it."""
    problem = values.inputs[name].problem
    reset: Any = problem.reset

    def begin(one: EvaluationPoint) -> PyTree:
        params = one.params[name]
        with annotate_errors(f"reset of problem {name!r}", params=params):
            return reset(params, objective.context(name, one))

    return restart(problem, _over_tasks(begin, name, values))


def drawn(
    objective: Objective, layer: int, state: State, batches: Mapping[str, PyTree]
) -> dict[str, PyTree]:
    """Let the problems of a layer that do so sample the batches of their steps."""
    names = objective.plan.graph.layers[layer]
    samplers = [n for n in names if state[n].sample is not None]
    return {**batches, **{n: sampled(objective, n, state) for n in samplers}}


def sampled(objective: Objective, name: str, state: State) -> PyTree:
    """Sample the batch of the next step of a problem; a constant."""
    return sampled_at(objective, name, _present(state, SAMPLE))


def sampled_at(
    objective: Objective, name: str, values: EvaluationPoint, *, train: bool = True
) -> PyTree:
    """Sample a batch of a problem at some values; a constant."""
    sample: Any = values.inputs[name].problem.sample

    def draw(one: EvaluationPoint) -> PyTree:
        ctx = objective.context(name, one, train=train)
        params = one.params[name]
        with annotate_errors(f"sample of problem {name!r}", params=params, rng=ctx.rng):
            return _batch(name, sample(params, ctx))

    return jax.lax.stop_gradient(_over_tasks(draw, name, values))


def _over_tasks(
    function: Callable[[EvaluationPoint], PyTree], name: str, values: EvaluationPoint
) -> PyTree:
    """Apply a function of values to those of each task of a problem, if it has any."""
    tasks = values.inputs[name].problem.tasks
    return function(values) if tasks is None else values.each(tasks, function)


def _batch(name: str, found: Any) -> PyTree:
    if wrong := find_non_array(found):
        raise TypeError(
            f"problem {name!r}: sample returned something that is no array: {wrong}. "
            "Expected a batch, a pytree of arrays."
        )
    return jax.tree.map(strip_weak_type, found)


def passed(before: Problem, after: Problem) -> Problem:
    """Return `after` with the derivative of `before` in its parameters."""

    def passed(new: jax.Array, old: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(new) + (old - jax.lax.stop_gradient(old))

    params = jax.tree.map(passed, after.params, before.params)
    return jax.lax.stop_gradient(after).replace(params=params)


def _present(state: State, purpose: int) -> EvaluationPoint:
    """Gather what problems see outside of their losses, with keys of their own."""

    def key(problem: Problem) -> jax.Array | None:
        if problem.rng is None:
            return None
        stream = jax.random.fold_in(problem.rng, purpose)
        return jax.random.fold_in(stream, problem.step)

    return EvaluationPoint.present(
        state, {n: key(problem) for n, problem in state.items()}
    )
