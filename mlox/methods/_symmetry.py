"""Whether a matrix that should be symmetric is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mlox._utils.tree import find_unit, norm, scale, vdot


def asymmetry(product: Callable[[Any], Any], x: Any, y: Any) -> jax.Array:
    """Return |<x, A y> - <y, A x>| / (||x|| ||A y|| + ||y|| ||A x||); no derivative.

    It is 0 for all x and y if and only if A is symmetric; here for two that are at
    hand, such as the right-hand side and the solution of a system.

    Example:
        >>> import jax.numpy as jnp
        >>> x, y = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
        >>> print(asymmetry(lambda v: jnp.array([v[1], -v[0]]), x, y))
        1.0
    """
    x, y = (scale(1 / find_unit(v), v) for v in jax.lax.stop_gradient((x, y)))
    Ax, Ay = (jax.lax.stop_gradient(product(v)) for v in (x, y))
    size = norm(x) * norm(Ay) + norm(y) * norm(Ax)
    difference = jnp.abs(vdot(x, Ay) - vdot(y, Ax))
    return jnp.where(size > 0, difference / jnp.where(size > 0, size, 1), 0)
