"""References for gradients, and the tables of the examples."""

from collections.abc import Callable, Mapping, Sequence
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


def print_table(columns: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> None:
    """Print the mean and standard deviation over runs of {row: one number a column}."""
    print(f"\n{columns[0]:22}" + "".join(f"{name:18}" for name in columns[1:]))
    for name in runs[0]:
        found = np.array([np.array(run[name], float) for run in runs])
        cells = zip(found.mean(axis=0), found.std(axis=0), strict=True)
        print(f"{name:22}" + "".join(f"{m:.3f} ± {s:.3f}     " for m, s in cells))
