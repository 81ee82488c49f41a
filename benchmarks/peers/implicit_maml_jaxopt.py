"""Implicit MAML by jaxopt: `custom_root` with `solve_cg`, under `jax.vmap`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _side import Given, Side
from jaxopt import implicit_diff, linear_solve
from peers import _sinusoids_jax as sinusoids

PyTree = Any


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    inner, outer = optax.sgd(settings["inner_rate"]), optax.adam(settings["outer_rate"])
    solve = functools.partial(
        linear_solve.solve_cg, maxiter=settings["products"], tol=0.0
    )

    def objective(
        params: PyTree, start: PyTree, support: sinusoids.Points
    ) -> jax.Array:
        away = jax.tree.map(jnp.subtract, params, start)
        pull = 0.5 * settings["strength"] * optax.tree.vdot(away, away)
        return sinusoids.error(params, support) + pull

    @implicit_diff.custom_root(jax.grad(objective), solve=solve)
    def adapt(params: PyTree, start: PyTree, support: sinusoids.Points) -> PyTree:
        def descend(carry: PyTree, _: None) -> tuple[PyTree, None]:
            params, opt_state = carry
            grads = jax.grad(objective)(params, start, support)
            updates, opt_state = inner.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        carry = params, inner.init(params)
        return jax.lax.scan(descend, carry, length=settings["inner_steps"])[0][0]

    def loss(params: PyTree, batch: PyTree) -> jax.Array:
        support, query = batch
        fixed = jax.lax.stop_gradient(params)
        adapted = jax.vmap(adapt, (None, None, 0))(fixed, params, support)
        return jax.vmap(sinusoids.error)(adapted, query).mean()

    def step(state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        params, opt_state = state
        metrics, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = outer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), metrics

    params = sinusoids.start(given)
    batches = tuple(sinusoids.points(given, part) for part in ("support", "query"))
    return sinusoids.side(
        step, (params, outer.init(params)), batches, lambda state: state[0], settings
    )
