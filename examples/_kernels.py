"""Kernel ridge regression of the breast cancer data, and its random search."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer

jax.config.update("jax_enable_x64", True)
Rows = tuple[np.ndarray, np.ndarray]
NAMES = load_breast_cancer().feature_names


def load(seed: int, size: int) -> list[Rows]:
    """Return training, half as many validation, and the other rows."""
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y, cuts = x[order], 2.0 * y[order] - 1, [size, size * 3 // 2]
    x = (x - x[:size].mean(axis=0)) / x[:size].std(axis=0)
    return list(zip(np.split(x, cuts), np.split(y, cuts), strict=True))


def kernel(x: Any, a: Any, b: Any) -> jax.Array:
    """Return exp(-|a - b|^2 / 2) of the scaled features; `x` holds logarithms."""
    a, b = a * jnp.exp(-x[:-1]), b * jnp.exp(-x[:-1])
    squares = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)
    return jnp.exp(a @ b.T - squares / 2)


def solve(x: Any, rows: Rows) -> jax.Array:
    matrix = kernel(x, rows[0], rows[0]) + jnp.exp(x[-1]) * jnp.eye(len(rows[1]))
    return jax.scipy.linalg.solve(matrix, rows[1], assume_a="pos")


@jax.jit
def loss(x: Any, train: Rows, rows: Rows) -> jax.Array:
    return jnp.mean((kernel(x, rows[0], train[0]) @ solve(x, train) - rows[1]) ** 2)


def best(points: Any, train: Rows, valid: Rows) -> np.ndarray:
    return points[int(jax.lax.map(lambda x: loss(x, train, valid), points).argmin())]


def search(start: np.ndarray, tries: int, train: Rows, valid: Rows) -> np.ndarray:
    """Search at random around a start, with small and large differences."""
    rng = np.random.default_rng(tries)
    spread = rng.choice([0.3, 1.0], (tries, 1)) * np.append(np.ones(len(start) - 1), 0)
    points = start + spread * rng.normal(size=(tries, len(start) - 1 + 1))
    points[:, -1] += rng.normal(size=tries)
    return best(np.concatenate([start[None], points[1:]]), train, valid)
