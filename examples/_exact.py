"""References for gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def differences(value: Callable[[Any], Any], x: Any, h: float) -> np.ndarray:
    """Return the gradient of a function of a vector, by central differences."""
    rows = h * np.eye(len(x))
    return np.array([float(value(x + e) - value(x - e)) for e in rows]) / (2 * h)


def error(found: Any, exact: np.ndarray) -> float:
    """Return |found - exact| / |exact|."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def minimum(cost: Callable[[Any], Any], start: Any, steps: int = 12) -> jax.Array:
    """Minimize by Newton's method; first derivatives flow through the last step."""

    def newton(x: jax.Array) -> jax.Array:
        return x - jnp.linalg.solve(jax.hessian(cost)(x), jax.grad(cost)(x))

    found = jax.lax.fori_loop(0, steps, lambda _, x: newton(x), start)
    return newton(jax.lax.stop_gradient(found))
