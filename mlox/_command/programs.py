"""Small programs with known hypergradients, for `python -m mlox selftest`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

SIZE = 4
RATE = 0.2  # of the lower
STEPS = 3  # of the loop that does not reach the answer

# The lower min_y y^T H y / 2 - b^T y with H = A + diag(exp x) has the answer H^-1 b,
# and the upper |y - 1|^2 / 2 the hypergradient -lambda exp(x) y, lambda = H^-1 (y - 1).
# H has its eigenvalues between 2 and 5.
A = np.diag(np.full(SIZE, 2.0)) - np.diag(np.full(SIZE - 1, 0.5), 1)
A = (A + A.T) / 2
B = np.linspace(1.0, 2.0, SIZE)
X = np.linspace(-0.5, 0.5, SIZE)
START = np.zeros(SIZE)


def make_matrix(x: np.ndarray) -> np.ndarray:
    """Return the Hessian of the lower."""
    return A + np.diag(np.exp(x))


def answer(x: np.ndarray) -> np.ndarray:
    """Return the answer of the lower, by a dense solve."""
    return np.linalg.solve(make_matrix(x), B)


def unroll(x: np.ndarray) -> np.ndarray:
    """Return where `STEPS` steps of gradient descent from `START` end."""
    y = START
    for _ in range(STEPS):
        y = y - RATE * (make_matrix(x) @ y - B)
    return y


def solve_by_hand(multiplier: Any) -> np.ndarray:
    """Return the hypergradient for a multiplier (H, y - 1) -> lambda."""
    y = answer(X)
    return -multiplier(make_matrix(X), y - 1) * np.exp(X) * y


def differentiate_numerically(reached: Any, step: float = 1e-5) -> np.ndarray:
    """Return the derivative of the upper's cost at y = reached(x), by differences."""

    def cost(x: np.ndarray) -> float:
        return float(np.sum((reached(x) - 1) ** 2) / 2)

    moves = step * np.eye(SIZE)
    return np.array([(cost(X + m) - cost(X - m)) / (2 * step) for m in moves])


def make_quadratic(
    method: Any, dtype: Any, start: np.ndarray, steps: int
) -> mlox.Engine:
    """Return the engine of the program above, whose upper rests."""

    def lower_loss(y: Any, batch: Any, ctx: Any) -> Any:
        h = jnp.asarray(A, dtype) @ y + jnp.exp(ctx.upper.params) * y
        return jnp.vdot(y, h) / 2 - jnp.vdot(jnp.asarray(B, dtype), y)

    def upper_loss(x: Any, batch: Any, ctx: Any) -> Any:
        return jnp.sum((ctx.lower.params - 1) ** 2) / 2

    # In parts, for Gauss-Newton products: its outputs are its parameters.
    parts = mlox.Composed(
        lambda y, batch, ctx: y,
        lambda outputs, batch, ctx: lower_loss(outputs, batch, ctx),
    )
    upper = mlox.Problem.create(
        name="upper",
        params=jnp.asarray(X, dtype),
        tx=optax.sgd(0.0),
        loss_fn=upper_loss,
    )
    lower = mlox.Problem.create(
        name="lower",
        params=jnp.asarray(start, dtype),
        tx=optax.sgd(RATE),
        loss_fn=parts,
        method=method,
        unroll_steps=steps,
    )
    return mlox.Engine([upper, lower], {"upper": ["lower"]}, {"lower": ["upper"]})


def make_regression(rows: int) -> tuple[mlox.Engine, Any]:
    """Return ridge regression with a penalty per weight, and the batches of a cycle."""

    def mean_error(y: Any, batch: Any) -> Any:
        inputs, targets = batch
        return jnp.mean((inputs @ y - targets) ** 2)

    def fit_loss(y: Any, batch: Any, ctx: Any) -> Any:
        return mean_error(y, batch) + jnp.sum(jnp.exp(ctx.penalty.params) * y**2)

    def penalty_loss(x: Any, batch: Any, ctx: Any) -> Any:
        return mean_error(ctx.fit.params, batch)

    penalty = mlox.Problem.create(
        name="penalty",
        params=jnp.zeros(SIZE),
        tx=optax.sgd(RATE),
        loss_fn=penalty_loss,
    )
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.zeros(SIZE),
        tx=optax.sgd(RATE),
        loss_fn=fit_loss,
        method=mlox.Implicit(mlox.CG(SIZE)),
        unroll_steps=STEPS,
    )
    engine = mlox.Engine([penalty, fit], {"penalty": ["fit"]}, {"fit": ["penalty"]})
    inputs = jax.random.normal(jax.random.key(0), (rows, SIZE))
    batch = (inputs, inputs @ jnp.asarray(B, inputs.dtype))
    return engine, engine.stack({name: iter([batch] * STEPS) for name in engine.names})
