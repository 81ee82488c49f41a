"""The network and the points of sinusoids in JAX, and a side made of a step."""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import _timing
import jax
import jax.numpy as jnp
import numpy as np
from _side import Given, Side
from flax.training.train_state import TrainState

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


def side_by_hand(
    step: _timing.Step, state: PyTree, batches: PyTree, settings: Mapping[str, Any]
) -> Side:
    """Return the side of a step on (weights, optimizer state, weights of all tasks)."""
    if settings.get("bare arrays"):
        return side(step, state, batches, lambda state: state[0], settings)
    step, state = count_steps(step, state, settings)
    return side(step, state, batches, lambda state: state["init"].params, settings)


def count_steps(
    step: _timing.Step, state: PyTree, settings: Mapping[str, Any]
) -> tuple[_timing.Step, PyTree]:
    """Return a step by hand on Flax's TrainStates, and its first state.

    They count their steps, as mlox's problems do.

    Args:
        step: One upper step on (weights, state of the optimizer, weights of all tasks).
        state: Where it starts.
        settings: "inner_steps".
    """
    make = functools.partial(TrainState, step=jnp.int32(0), apply_fn=None, tx=None)
    params, opt_state, fits = state
    start = {
        "init": make(params=params, opt_state=opt_state),
        "adapted": make(params=fits, opt_state=()),
    }

    def wrapped(state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        init, adapted = state["init"], state["adapted"]
        plain = init.params, init.opt_state, adapted.params
        (params, opt_state, fits), metrics = step(plain, batch)
        return {
            "init": init.replace(
                params=params, opt_state=opt_state, step=init.step + 1
            ),
            "adapted": adapted.replace(
                params=fits, step=adapted.step + settings["inner_steps"]
            ),
        }, metrics

    return wrapped, start


def versions() -> dict[str, str]:
    return {n: importlib.metadata.version(n) for n in ("jax", "optax")}
