"""Implicit MAML by hand: conjugate gradients of each task under `jax.vmap`.

At the minimum w of error(w) + strength / 2 ||w - start||^2 the derivative of w by the
start is strength times the inverse of the matrix: a cotangent v of w becomes
strength times the solution of (Hessian + strength I) x = v. The state holds the fits of
all tasks, too, and the metrics the residual and the gap, as those of mlox do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _side import Given, Side
from peers import _sinusoids_jax as sinusoids

PyTree = Any


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    inner, outer = optax.sgd(settings["inner_rate"]), optax.adam(settings["outer_rate"])
    strength = settings["strength"]

    def objective(
        params: PyTree, start: PyTree, support: sinusoids.Points
    ) -> jax.Array:
        away = jax.tree.map(jnp.subtract, params, start)
        pull = 0.5 * strength * optax.tree.vdot(away, away)
        return sinusoids.error(params, support) + pull

    def adapt(start: PyTree, support: sinusoids.Points) -> tuple[PyTree, jax.Array]:
        def descend(carry: PyTree, _: None) -> tuple[PyTree, jax.Array]:
            params, opt_state = carry
            loss, grads = jax.value_and_grad(objective)(params, start, support)
            updates, opt_state = inner.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        carry = start, inner.init(start)
        steps = settings["inner_steps"]
        (params, _), losses = jax.lax.scan(descend, carry, length=steps)
        return params, losses

    def task(
        start: PyTree, support: sinusoids.Points, query: sinusoids.Points
    ) -> tuple[PyTree, PyTree, PyTree]:
        """Return the gradient of a task's loss by the start, its fit, and a report."""
        params, losses = adapt(start, support)
        loss, v = jax.value_and_grad(sinusoids.error)(params, query)
        slope, product = jax.linearize(
            lambda params: jax.grad(objective)(params, start, support), params
        )
        x, residual = solve(product, v, settings["products"])
        gradient = jax.tree.map(lambda leaf: strength * leaf, x)
        report = loss, losses, residual, optax.tree.vdot(x, slope)
        return gradient, params, report

    def step(state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        params, opt_state, _ = state
        each, adapted, reports = jax.vmap(task, (None, 0, 0))(params, *batch)
        grads, metrics = jax.tree.map(lambda x: x.mean(0), (each, reports))
        updates, opt_state = outer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, adapted), metrics

    params = sinusoids.start(given)
    state = params, outer.init(params), sinusoids.copies(params, settings["tasks"])
    batches = tuple(sinusoids.points(given, part) for part in ("support", "query"))
    return sinusoids.side_by_hand(step, state, batches, settings)


def solve(product: Any, v: PyTree, iterations: int) -> tuple[PyTree, jax.Array]:
    """Return an iterate of conjugate gradients, and its residual."""

    def iterate(_: Any, carry: PyTree) -> PyTree:
        x, r, p, rr = carry
        product_p = product(p)
        alpha = rr / optax.tree.vdot(p, product_p)
        x = optax.tree.add_scale(x, alpha, p)
        r = optax.tree.add_scale(r, -alpha, product_p)
        after = optax.tree.vdot(r, r)
        return x, r, optax.tree.add_scale(r, after / rr, p), after

    vv = optax.tree.vdot(v, v)
    start = jax.tree.map(jnp.zeros_like, v), v, v, vv
    x, _, _, rr = jax.lax.fori_loop(0, iterations, iterate, start)
    return x, jnp.sqrt(rr / vv)
