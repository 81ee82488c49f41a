"""MAML by hand: `jax.vmap` over tasks, and `jax.grad` through a scan of steps.

The state holds the adapted weights of all tasks, too, as that of mlox does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax
from _side import Given, Side
from peers import _sinusoids_jax as sinusoids

PyTree = Any


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    inner, outer = optax.sgd(settings["inner_rate"]), optax.adam(settings["outer_rate"])

    def adapt(params: PyTree, support: sinusoids.Points) -> tuple[PyTree, jax.Array]:
        def descend(carry: PyTree, _: None) -> tuple[PyTree, jax.Array]:
            params, opt_state = carry
            loss, grads = jax.value_and_grad(sinusoids.error)(params, support)
            updates, opt_state = inner.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        carry = params, inner.init(params)
        steps = settings["inner_steps"]
        (params, _), losses = jax.lax.scan(descend, carry, length=steps)
        return params, losses

    def loss(params: PyTree, batch: PyTree) -> tuple[jax.Array, PyTree]:
        support, query = batch
        adapted, losses = jax.vmap(adapt, (None, 0))(params, support)
        return jax.vmap(sinusoids.error)(adapted, query).mean(), (adapted, losses)

    def step(state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        params, opt_state, _ = state
        (found, (adapted, losses)), grads = jax.value_and_grad(loss, has_aux=True)(
            params, batch
        )
        updates, opt_state = outer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state, adapted), (found, losses.mean(0))

    params = sinusoids.start(given)
    state = params, outer.init(params), sinusoids.copies(params, settings["tasks"])
    batches = tuple(sinusoids.points(given, part) for part in ("support", "query"))
    return sinusoids.side_by_hand(step, state, batches, settings)
