"""Sample: batches that problems make inside the step."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mlox._cycle.history import LowerRun
from mlox._cycle.present import Stream, point_of_stream, seen_by
from mlox._cycle.windows import next_inner_steps
from mlox._graph.dependencies import Plan
from mlox._hypergradient.cost import context_of
from mlox._hypergradient.point import EvaluationPoint
from mlox._hypergradient.tasks import map_if_tasks
from mlox._utils.describe import annotate_errors, find_non_array
from mlox._utils.tree import strip_weak_type
from mlox._utils.types import Batches, PyTree, State


def sample_batches(plan: Plan, layer: int, run: LowerRun, batches: Batches) -> Batches:
    """Return the batches of a layer's steps, with those that its problems sample."""
    names = [
        n
        for n in plan.graph.layers[layer]
        if n in batches and run.state[n].sample is not None
    ]
    return {**batches, **{n: _sample_next(plan, n, run) for n in names}}


def _sample_next(plan: Plan, name: str, run: LowerRun) -> PyTree:
    seen = seen_by(plan, name, run.state)
    inner_steps = next_inner_steps(seen, run.history)
    point = point_of_stream(plan.graph, seen, Stream.SAMPLE, inner_steps)
    return sample_batch(plan, name, point)


def sample_batch(
    plan: Plan, name: str, point: EvaluationPoint, *, train: bool = True
) -> PyTree:
    """Sample a batch of a problem at a point; a constant."""
    sample: Any = point.inputs[name].problem.sample

    def draw(one: EvaluationPoint) -> PyTree:
        ctx = context_of(plan, name, one, train=train)
        params = one.params[name]
        with annotate_errors(f"sample of problem {name!r}", params=params, rng=ctx.rng):
            batch = sample(params, ctx)
        if wrong := find_non_array(batch):
            raise TypeError(
                f"problem {name!r}: sample returned a leaf that is not an array: "
                f"{wrong}. Return a pytree of arrays."
            )
        return jax.tree.map(strip_weak_type, batch)

    return jax.lax.stop_gradient(map_if_tasks(draw, name, point))


def empty_samples(plan: Plan, state: State) -> dict[str, PyTree]:
    """Return zeros in place of the last sampled batches, before any step."""
    # A state that is about another problem may not have what a problem sees.
    names = [
        n
        for n, problem in state.items()
        if problem.sample is not None and all(m in state for m in plan.graph.reads(n))
    ]

    def sample(state: State, name: str) -> PyTree:
        return sample_batch(
            plan, name, point_of_stream(plan.graph, state, Stream.SAMPLE)
        )

    shapes = {
        n: jax.eval_shape(partial(sample, name=n), seen_by(plan, n, state))
        for n in names
    }
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
