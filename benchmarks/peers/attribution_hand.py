"""Data attribution by hand: a training in a scan, and `jax.value_and_grad` of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _side import Given, Side
from peers import _classifier_jax as classifier


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    tx = optax.adam(**settings["adam"], eps_root=settings["eps_root"])
    params = classifier.start(given)

    def train(v: jax.Array, state: Any, batches: Any) -> Any:
        def weighted(w: Any, batch: Any) -> jax.Array:
            return jnp.mean(v[batch[2]] * classifier.losses(w, batch))

        def descend(carry: Any, batch: Any) -> Any:
            w, opt = carry
            updates, opt = tx.update(jax.grad(weighted)(w, batch), opt, w)
            return (optax.apply_updates(w, updates), opt), None

        return jax.lax.scan(descend, state, batches)[0][0]

    def step(state: Any, batches: Any) -> Any:
        v, *start = state
        training, query = batches

        def cost(v: jax.Array) -> jax.Array:
            return classifier.losses(train(v, tuple(start), training), query).mean()

        return state, jax.value_and_grad(cost)(v)

    training = classifier.training(given)
    return classifier.side(
        step,
        (jnp.ones(len(given["x"])), params, tx.init(params)),
        [(training, query) for query in classifier.queries(given)],
        lambda state, found: {"tau": found[1]},
    )
