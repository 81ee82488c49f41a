"""The job of `_solved` by hand: a loop, and `jax.scipy.sparse.linalg.cg`."""

from __future__ import annotations

import jax
from _side import Given, Side
from peers import _solved, _steps


def build(given: Given, settings: _steps.Settings) -> Side:
    """Build the job."""
    cost, loss = _solved.losses(given)
    slope = jax.grad(cost)

    @jax.custom_vjp
    def answer(penalties: jax.Array, params: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(
            0,
            settings["iterations"],
            lambda _, y: y - settings["rate"] * slope(y, penalties),
            params,
        )

    def forward(penalties: jax.Array, params: jax.Array) -> tuple[jax.Array, tuple]:
        found = answer(penalties, params)
        return found, (penalties, found)

    def backward(kept: tuple, v: jax.Array) -> tuple[jax.Array, None]:
        penalties, found = kept
        product = jax.linearize(lambda y: slope(y, penalties), found)[1]
        most = {"tol": settings["tolerance"], "maxiter": settings["products"]}
        lam = jax.scipy.sparse.linalg.cg(product, v, **most)[0]
        pairing = lambda p: jax.jvp(lambda y: cost(y, p), (found,), (-lam,))[1]
        return jax.grad(pairing)(penalties), None

    answer.defvjp(forward, backward)
    return _solved.side(answer, loss, given, settings)
