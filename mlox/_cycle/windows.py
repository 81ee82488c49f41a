"""Where windows began: the counts of steps from which `ctx.inner_step` is told."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mlox._cycle.history import History
from mlox._graph.graph import Graph
from mlox._problem.problem import Problem
from mlox._utils.types import State

# A problem's present window is its inner loop: the window of the nearest layer that
# reads its answer, or the cycle if none does. The step within it,
#
#     inner_step = step - (step when the window began),
#
# needs no counter in the state: windows begin where the program says so, and the
# history of a cycle holds the counts of that moment. The position in the schedule, and
# `step` modulo the steps in a window, are not the same: a problem that waits for those
# below it makes fewer steps, and a look-ahead that is rolled back leaves one round.


def start_windows(graph: Graph, layer: int, state: State, history: History) -> History:
    """Return the history with the counts at which a layer's inner loops begin."""
    names = [
        n
        for n in graph.names_below(layer)
        if n in state and graph.inner_layer.get(n) == layer
    ]
    first_steps = {**history.first_steps, **{n: state[n].step for n in names}}
    return history._replace(first_steps=first_steps)


def next_inner_steps(state: State, history: History) -> Mapping[str, jax.Array]:
    """Return the inner step of each problem's next step."""
    return {n: inner_step(p, p.step, history) for n, p in state.items()}


def inner_step(problem: Problem, step: jax.Array, history: History) -> jax.Array:
    """Return which step of its window a step of a problem is, from 0."""
    # A problem without a step in its window made its last one in the window before.
    passed = step - history.first_steps[problem.name]
    return jnp.maximum(passed, 0).astype(jnp.int32)
