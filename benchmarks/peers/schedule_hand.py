"""A learned schedule by hand: a scan over rates and batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _side import Given, Side
from peers import _classifier_jax as classifier


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    params, steps = classifier.start(given), len(given["order"])
    momentum = optax.trace(settings["momentum"])
    adam = optax.adam(settings["outer rate"])

    def loss(w: Any, batch: Any) -> jax.Array:
        return classifier.losses(w, batch).mean()

    def descend(carry: Any, x: Any) -> Any:
        (w, opt), (rate, batch) = carry, x
        value, grads = jax.value_and_grad(loss)(w, batch)
        updates, opt = momentum.update(grads, opt)
        return (jax.tree.map(lambda w, u: w - rate * u, w, updates), opt), value

    def step(state: Any, batches: Any) -> Any:
        log_rates, opt, _, _ = state
        training, query = batches

        def cost(log_rates: jax.Array) -> Any:
            along = (jnp.exp(log_rates), training)
            last, values = jax.lax.scan(descend, (params, momentum.init(params)), along)
            return loss(last[0], query), (last, values)

        grad = jax.value_and_grad(cost, has_aux=True)
        (value, (last, values)), slope = grad(log_rates)
        updates, opt = adam.update(slope, opt)
        after = optax.apply_updates(log_rates, updates), opt, *last
        return after, (value, values)

    first = jnp.full(steps, jnp.log(settings["first rate"]))
    return classifier.side(
        step,
        (first, adam.init(first), params, momentum.init(params)),
        [(classifier.training(given)[:2], q) for q in classifier.queries(given)],
        lambda state, found: {"log_rates": state[0]},
    )
