"""Long loops by hand: `jax.grad` through a scan, or through nested scans.

With "segments" [a, b, c] there are a b c steps: an outer scan over a segments of b
segments of c steps, each body under `jax.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from _side import Given, Side
from peers import _long_jax as long

PyTree = Any
Body = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]


def nested(body: Body, carry: PyTree, xs: PyTree, segments: list[int]) -> Any:
    """Scan over the leading axes of `xs`, one for each size of the segments."""
    if len(segments) > 1:
        inner = body
        body = lambda carry, xs: nested(inner, carry, xs, segments[1:])
    return jax.lax.scan(jax.checkpoint(body, prevent_cse=False), carry, xs)


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    params, weights = long.start(given)
    steps, true = long.data(given)
    inner, outer = long.optimizer(settings), optax.sgd(settings["upper_rate"])
    segments = settings.get("segments")

    def train(weights: jax.Array, lower: PyTree, steps: long.Batch) -> Any:
        def descend(carry: PyTree, batch: long.Batch) -> tuple[PyTree, jax.Array]:
            params, opt_state = carry
            loss, grads = jax.value_and_grad(long.fit_loss)(params, weights, batch)
            updates, opt_state = inner.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        if segments is None:
            return jax.lax.scan(descend, lower, steps)
        cut = lambda x: x.reshape(*segments, *x.shape[1:])
        lower, losses = nested(descend, lower, jax.tree.map(cut, steps), segments)
        return lower, losses.reshape(-1)

    def loss(weights: jax.Array, lower: PyTree, batches: PyTree) -> Any:
        steps, true = batches
        lower, losses = train(weights, lower, steps)
        return long.true_loss(lower[0], true), (lower, losses)

    def step(state: PyTree, batches: PyTree) -> tuple[PyTree, PyTree]:
        weights, opt_state, lower = state
        (value, (lower, losses)), grads = jax.value_and_grad(loss, has_aux=True)(
            weights, lower, batches
        )
        updates, opt_state = outer.update(grads, opt_state, weights)
        weights = optax.apply_updates(weights, updates)
        return (weights, opt_state, lower), (value, losses)

    state = weights, outer.init(weights), (params, inner.init(params))
    return long.side(step, state, (steps, true), lambda state: state[0])
