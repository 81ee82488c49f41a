"""Small, well-conditioned linear systems of each class, on pytrees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from mlox._utils.types import PyTree
from mlox.solvers import System

SIZE = 6


def make_matrix(system: System, dtype: Any) -> jax.Array:
    """Return a matrix of a class, whose eigenvalues have sizes of 0.5 to 1.5."""
    draw = np.random.default_rng(0).normal(size=(SIZE, SIZE))
    Q = np.linalg.qr(draw)[0]
    values = np.linspace(0.5, 1.5, SIZE)
    if system is System.SYMMETRIC:
        values = values * (-1.0) ** np.arange(SIZE)
    matrix = Q * values @ Q.T
    if system is System.GENERAL:
        matrix = matrix + 0.4 * np.triu(draw, 1)
    return jnp.asarray(matrix, dtype)


def make_singular(dtype: Any) -> jax.Array:
    """Return a positive semidefinite matrix with the eigenvalue 0."""
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))[0]
    return jnp.asarray(
        Q * np.array([0.0, *np.linspace(0.5, 1.5, SIZE - 1)]) @ Q.T, dtype
    )


def make_tree(seed: int, dtype: Any) -> PyTree:
    """Return a right-hand side of `SIZE` numbers in leaves of several shapes."""
    flat = np.random.default_rng(seed).normal(size=SIZE)
    return {
        "a": jnp.asarray(flat[:1].reshape(()), dtype),
        "b": (jnp.asarray(flat[1:5].reshape(2, 2), dtype),),
        "c": jnp.asarray(flat[5:], dtype),
    }


def reorder(tree: PyTree) -> PyTree:
    """Return such a tree with its leaves in another order, by other names."""
    return {"a": tree["c"], "b": tree["b"][0], "c": [tree["a"]]}


def restore_order(tree: PyTree) -> PyTree:
    """Return the tree that `reorder` was given."""
    return {"a": tree["c"][0], "b": (tree["b"],), "c": tree["a"]}


def multiply(matrix: jax.Array) -> Callable[[PyTree], PyTree]:
    """Return the map x -> A x on pytrees."""

    def product(x: PyTree) -> PyTree:
        flat, unravel = ravel_pytree(x)
        return unravel(jnp.matmul(matrix, flat, precision="highest"))

    return product


def solve_dense(matrix: jax.Array, b: PyTree) -> PyTree:
    """Return the solution of a system, by NumPy in float64."""
    flat, unravel = ravel_pytree(b)
    x = np.linalg.solve(np.asarray(matrix, float), np.asarray(flat, float))
    return unravel(jnp.asarray(x, flat.dtype))
