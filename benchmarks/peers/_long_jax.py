"""The network of the long loops in JAX, and a side made of a step."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

import _timing
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _side import Given, Side
from peers import _long

PyTree = Any
Batch = Mapping[str, jax.Array]


def losses(params: PyTree, x: jax.Array, label: jax.Array) -> jax.Array:
    """Return the loss of each row."""
    *hidden, (matrix, bias) = params
    for weights, shift in hidden:
        x = jnp.tanh(x @ weights + shift[None])
    scores = x @ matrix + bias[None]
    return optax.softmax_cross_entropy_with_integer_labels(scores, label)


def fit_loss(params: PyTree, weights: jax.Array, batch: Batch) -> jax.Array:
    each = losses(params, batch["x"], batch["label"])
    return jnp.mean(jax.nn.sigmoid(weights[batch["index"]]) * each)


def true_loss(params: PyTree, batch: Batch) -> jax.Array:
    return jnp.mean(losses(params, batch["x"], batch["label"]))


def start(given: Given) -> tuple[PyTree, jax.Array]:
    """Return the first parameters, layer by layer, and the first weights."""
    layers = range(len(_long.SIZES) - 1)
    params = [
        tuple(jnp.asarray(given[f"{name}{i}"]) for name in ("matrix", "bias"))
        for i in layers
    ]
    return params, jnp.zeros(_long.EXAMPLES)


def data(given: Given) -> tuple[Batch, Batch]:
    """Return the batches of all steps, and that of the upper."""
    steps = {name: jnp.asarray(given[name]) for name in ("x", "label", "index")}
    true = {name: jnp.asarray(given[f"true_{name}"]) for name in ("x", "label")}
    return steps, true


def optimizer(settings: Mapping[str, Any]) -> optax.GradientTransformation:
    rate = settings["rate"]
    return optax.adam(rate, eps_root=1e-16) if settings["adam"] else optax.sgd(rate)


def side(
    step: _timing.Step,
    state: PyTree,
    batches: PyTree,
    weights: Callable[[PyTree], jax.Array],
) -> Side:
    """Return the side that an upper step makes; `weights` takes them out of a state."""
    state = jax.tree.map(lambda x: jnp.array(x, copy=True), state)
    made = _timing.compiled(step, state, batches)

    def advance(steps: int) -> None:
        nonlocal state
        metrics = None
        for _ in range(steps):
            state, metrics = made.program(state, batches)
        jax.block_until_ready((state, metrics))

    versions = {n: importlib.metadata.version(n) for n in ("jax", "optax")}
    outcome = lambda: {"weights": np.asarray(weights(state))}
    return Side(advance, outcome, versions, made.facts)
