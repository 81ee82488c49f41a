"""Rows with labels from many sources, and classifiers trained without mlox."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _exact import minimum
from _rows import odd_digits
from scipy.optimize import root

SOURCES, BAD = 20, 8
L2 = np.arange(-6.0, 1.0)  # logarithms


def load(seed: int, rows: int, clean: int, features: int) -> list[Any]:
    """Return (x, y, source) of A, and (x, y) of B, of C and of the test rows."""
    (x, y), *rest = odd_digits(seed, [rows, clean, clean], features)
    source = np.arange(rows) % SOURCES
    wrong = np.random.default_rng(seed).random(rows) < 0.8 * (source < BAD)
    return [(x, np.where(wrong, -y, y), source), *rest]


def loss(c: Any, rows: Any, weights: Any = None) -> jax.Array:
    losses = jnp.logaddexp(0.0, -rows[1] * (rows[0] @ c))
    return jnp.average(losses, weights=weights)


@jax.jit
def fit(l2: Any, rows: Any) -> jax.Array:
    """Train with equal weights and an L2 penalty exp(l2)."""
    zeros = jnp.zeros(rows[0].shape[1])
    return minimum(lambda c: loss(c, rows) + jnp.exp(l2) * c @ c / 2, zeros)


def baselines(data: list[Any]) -> dict[str, Any]:
    """Train on A, on its good sources, and on B and C; choose L2 penalties on C."""
    A, B, C, _ = data

    def chosen(rows: Any) -> Any:
        return min(L2, key=lambda l2: loss(fit(l2, rows), C))

    right = tuple(part[A[2] >= BAD] for part in A[:2])
    both = tuple(map(np.concatenate, zip(B, C, strict=True)))
    return {
        "A, equal weights": fit(chosen(A[:2]), A[:2]),
        "A, good sources only": fit(chosen(right), right),
        "B and C": fit(chosen(B), both),
    }


def classifier_cost(c: Any, p: Any, t: Any, A: Any) -> jax.Array:
    return loss(c, A, jax.nn.sigmoid(p)[A[2]]) + jnp.exp(t[1]) * c @ c / 2


def weights_cost(c: Any, p: Any, t: Any, B: Any) -> jax.Array:
    return loss(c, B) + jnp.exp(t[0]) * jnp.mean(p**2)


def solved(data: Any) -> tuple[Any, Any, Any]:
    """Return c*(p, t), p*(t) and the cost of t at p and c*(p, t), solved by Newton."""

    def answer(p: Any, t: Any) -> jax.Array:
        return minimum(lambda c: classifier_cost(c, p, t, data[0]), jnp.zeros(5))

    cost = lambda p, t: weights_cost(answer(p, t), p, t, data[1])
    slope = jax.jit(jax.grad(cost))
    weights = lambda t: root(slope, np.zeros(SOURCES), args=(t,), tol=1e-13).x
    top = jax.jit(lambda p, t: loss(answer(p, t), data[2]))
    return answer, weights, top
