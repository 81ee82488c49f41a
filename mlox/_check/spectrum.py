"""The extreme eigenvalues of a Hessian, by Lanczos' process."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mlox._utils.tree import ravel
from mlox._utils.types import Tree
from mlox.solvers import MatVec

PRODUCTS = 64


def extreme_eigenvalues(
    matvec: MatVec, like: Tree, products: int = PRODUCTS
) -> tuple[jax.Array, jax.Array]:
    """Return the smallest and the largest eigenvalue of a symmetric map.

    Exact for at most `products` unknowns; for more, the extremes converge first, from
    within.

    Args:
        matvec: The map.
        like: A pytree of the structure that it takes.
        products: The largest number of products.

    References:
        Golub and Van Loan, Matrix Computations, 2013, chapter 10.
    """
    flat, unravel = ravel(like)
    length = min(products, flat.size)
    first = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)

    # Rows of V are orthonormal; each is made orthogonal to all before it, twice, and
    # where nothing is left of it, the space is invariant: its row is zero from then on.
    def step(V: jax.Array, k: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        w = ravel(matvec(unravel(V[k])))[0]
        alpha = w @ V[k]
        size = jnp.linalg.norm(w)
        for _ in range(2):
            w = w - (V @ w) @ V
        beta = jnp.linalg.norm(w)
        fresh = beta > 1e-10 * size
        row = jnp.where(fresh, w / jnp.where(fresh, beta, 1), 0)
        return V.at[k + 1].set(row), (alpha, jnp.where(fresh, beta, 0))

    V = jnp.zeros((length + 1, flat.size), flat.dtype)
    V = V.at[0].set(first / jnp.linalg.norm(first))
    V, (alpha, beta) = jax.lax.scan(step, V, jnp.arange(length))
    T = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    # After an invariant space the rows are zero: they repeat its first diagonal entry.
    reached = jnp.any(V[:-1] != 0, axis=1)
    T = jnp.where(reached[:, None] & reached[None, :], T, 0)
    T = T + jnp.diag(jnp.where(reached, 0, alpha[0]))
    values = jnp.linalg.eigvalsh(T)
    return values[0], values[-1]
