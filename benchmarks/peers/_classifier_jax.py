"""The classifier in JAX, and a side made of a step."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import _timing
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _side import Given, Side

PyTree = Any


def start(given: Given) -> PyTree:
    """Return the first weights, layer by layer."""
    layers = sum(name.startswith("bias") for name in given)
    return [
        (jnp.asarray(given[f"weights{i}"]), jnp.asarray(given[f"bias{i}"]))
        for i in range(layers)
    ]


def losses(params: PyTree, batch: PyTree) -> jax.Array:
    """Return the loss of each example of a batch (x, y, ...)."""
    x, y, *_ = batch
    *hidden, (weights, bias) = params
    for matrix, shift in hidden:
        x = jnp.tanh(x @ matrix + shift)
    logits = x @ weights + bias
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


def training(given: Given) -> PyTree:
    """Return the batches of a training: x, y and which examples they are."""
    order, y = jnp.int32(given["order"]), jnp.int32(given["y"])
    return jnp.asarray(given["x"])[order], y[order], order


def queries(given: Given) -> list[PyTree]:
    """Return the batches that judge."""
    x, y = jnp.asarray(given["query_x"]), jnp.int32(given["query_y"])
    return list(zip(x, y, strict=True))


def side(
    step: _timing.Step,
    state: PyTree,
    batches: Sequence[PyTree],
    outcome: Callable[[PyTree, PyTree], dict[str, jax.Array]],
) -> Side:
    """Return the side that a step makes, which takes the batches in turn.

    Args:
        step: One upper step, (state, batch) -> (state, what it has found).
        state: Where it starts.
        batches: One for each step.
        outcome: Takes the arrays to compare out of a state and what was found last.
    """
    state, found = jax.tree.map(lambda x: jnp.array(x, copy=True), state), None
    made = _timing.compiled(step, state, batches[0])
    upcoming = itertools.cycle(batches)

    def advance(steps: int) -> None:
        nonlocal state, found
        for batch in itertools.islice(upcoming, steps):
            state, found = made.program(state, batch)
        jax.block_until_ready((state, found))

    return Side(
        advance,
        lambda: {name: np.asarray(x) for name, x in outcome(state, found).items()},
        {name: importlib.metadata.version(name) for name in ("jax", "optax")},
        made.facts,
    )
