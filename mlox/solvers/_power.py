"""The step of a stationary iteration, from the largest eigenvalue."""

from typing import Any

import jax
import jax.numpy as jnp

from mlox._utils.tree import norm, scale
from mlox._utils.types import Tree
from mlox.solvers._draw import draw_like, make_key
from mlox.solvers._iterate import Start, divide, iterate

# Power iteration finds |A v| of a unit vector v, which is at most the largest
# eigenvalue. An iteration of step a converges for a < 2 / largest: this one does where
# the estimate is at least 0.45 of it. A random v has about 1/n of its square along the
# eigenvector, and n products with a factor of 1 / 0.45 each bring it to the front: 10
# are enough for 10^7 unknowns, even if all other eigenvalues are at 0.45.
PRODUCTS = 10
BELOW = 0.9


def choose_step(step: float | None, first: Start) -> tuple[Any, int]:
    """Return a step, and the number of products that it took to find it.

    Args:
        step: the step, if it is given.
        first: where the solver starts: of its vectors only the shapes are used.
    """
    return (_find_step(first), PRODUCTS) if step is None else (step, 0)


def _find_step(first: Start) -> jax.Array:
    """Return a step just below 1 over the largest eigenvalue."""

    def step(state: tuple[Tree, jax.Array]) -> tuple[Tree, jax.Array]:
        return _normalize(first.product(state[0]))

    begin = _normalize(draw_like(make_key(0), first.r))
    _, size = iterate(step, begin, PRODUCTS, None, first.unroll)
    return divide(jnp.asarray(BELOW, size.dtype), size)


def _normalize(v: Tree) -> tuple[Tree, jax.Array]:
    """Return a vector over its norm, and the norm."""
    size = norm(v)
    return scale(divide(jnp.ones_like(size), size), v), size
