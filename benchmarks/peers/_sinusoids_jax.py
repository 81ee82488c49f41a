"""The network and the points of sinusoids in JAX, and a side made of a step."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import _timing
import jax
import jax.numpy as jnp
import numpy as np
from _side import Given, Side

PyTree = Any
Points = tuple[jax.Array, jax.Array]


def network(params: PyTree, x: jax.Array) -> jax.Array:
    *hidden, (weights, bias) = params
    for matrix, shift in hidden:
        x = jax.nn.relu(x @ matrix + shift)
    return x @ weights + bias


def error(params: PyTree, points: Points) -> jax.Array:
    x, y = points
    return jnp.mean((network(params, x) - y) ** 2)


def start(given: Given) -> PyTree:
    """Return the first weights, layer by layer."""
    layers = sum(name.startswith("bias") for name in given)
    return [
        (jnp.asarray(given[f"weights{i}"]), jnp.asarray(given[f"bias{i}"]))
        for i in range(layers)
    ]


def copies(params: PyTree, tasks: int) -> PyTree:
    """Return the weights of as many tasks, each leaf [tasks, ...]."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (tasks, *x.shape)), params)


def points(given: Given, part: str) -> Points:
    """Return all batches of the points of a part, "support" or "query"."""
    return jnp.asarray(given[f"{part}_x"]), jnp.asarray(given[f"{part}_y"])


def side(
    step: _timing.Step,
    state: PyTree,
    batches: PyTree,
    params: Callable[[PyTree], PyTree],
    settings: Mapping[str, Any],
) -> Side:
    """Return the side that a step makes.

    Args:
        step: One upper step, (state, batch) -> (state, metrics).
        state: Where it starts.
        batches: All batches, each leaf [batches, ...]; steps take them in turn.
        params: Takes the weights out of a state.
        settings: "dispatch", the upper steps in each call of the program.
    """
    each = settings.get("dispatch")
    calls, program = jax.tree.map(lambda x: x[:1], batches), step
    count = len(jax.tree.leaves(batches)[0])
    if each is None:
        calls = [jax.tree.map(lambda x, i=i: x[i], batches) for i in range(count)]
    else:
        program = lambda state, batches: jax.lax.scan(step, state, batches)
        starts = range(0, count, each)
        calls = [jax.tree.map(lambda x, i=i: x[i : i + each], batches) for i in starts]
    state = jax.tree.map(lambda x: jnp.array(x, copy=True), state)
    made = _timing.compiled(program, state, calls[0])
    upcoming = itertools.cycle(calls)

    def advance(steps: int) -> None:
        nonlocal state
        metrics = None
        for batch in itertools.islice(upcoming, steps // (each or 1)):
            state, metrics = made.program(state, batch)
        jax.block_until_ready((state, metrics))

    def outcome() -> dict[str, np.ndarray]:
        found = {}
        for i, (weights, bias) in enumerate(params(state)):
            found |= {f"weights{i}": np.asarray(weights), f"bias{i}": np.asarray(bias)}
        return found

    return Side(advance, outcome, versions(), made.facts)


def versions() -> dict[str, str]:
    return {n: importlib.metadata.version(n) for n in ("jax", "optax")}
