"""Draws: the last batches and keys of a window, for products on each of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mlox._cycle.history import LowerRun
from mlox._cycle.present import Stream, key_of_stream, seen_by
from mlox._cycle.sample import sample_batch
from mlox._cycle.windows import next_inner_steps
from mlox._graph.dependencies import Plan
from mlox._hypergradient.point import Draws, present_point
from mlox._problem.task_chunk import split_key
from mlox._utils.types import Batches, PyTree
from mlox.methods import count_draws


def find_draws(plan: Plan, name: str, run: LowerRun, batches: Batches) -> Draws | None:
    """Return the last draws of a problem, if its method asks for several.

    `batches` has all steps of the window that ends, so that nothing is copied.
    """
    problem = run.state[name]
    count = count_draws(problem.method)
    if count == 1:
        return None
    drawn = problem.sample is not None
    stack = _sample_anew(plan, name, run, count) if drawn else batches[name]
    rng = problem.rng
    if rng is None:
        return Draws(stack, None)

    def key_of(step: jax.Array) -> jax.Array:
        key = jax.random.fold_in(rng, step)
        return key if problem.tasks is None else split_key(problem, key)

    last = problem.step - count + jnp.arange(count, dtype=problem.step.dtype)
    return Draws(stack, jax.vmap(key_of)(last))


def _sample_anew(plan: Plan, name: str, run: LowerRun, count: int) -> PyTree:
    """Return batches that a problem samples by keys of which no step makes use."""
    seen = seen_by(plan, name, run.state)
    keys = {n: key_of_stream(problem, Stream.DRAW) for n, problem in seen.items()}
    inner_steps = next_inner_steps(seen, run.history)

    def sample(i: jax.Array) -> PyTree:
        own = jax.tree.map(lambda key: jax.random.fold_in(key, i), keys)
        point = present_point(plan.graph, seen, own, inner_steps=inner_steps)
        return sample_batch(plan, name, point)

    return jax.lax.map(sample, jnp.arange(count, dtype=jnp.int32))
