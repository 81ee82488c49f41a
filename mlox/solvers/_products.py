"""Products with another matrix in each iteration, and the solvers that take them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from mlox._utils.types import Tree
from mlox.solvers._base import MatVec

# A solver whose iteration is a recursion in its iterates alone, such as
# x <- x + a (b - A x), makes sense with another matrix in each iteration: with
# independent draws A_i of the mean A the mean of its iterates is that of the recursion
# with A. A Krylov solver builds its coefficients from products with one matrix.


@dataclass(frozen=True)
class Products:
    """Products with a matrix of its own in each iteration of a solver.

    What stands in place of `matvec` for a solver that `takes_draws`. Called like a
    `matvec` it is that of iteration 0, so that it serves where there is one matrix.

    Attributes:
        at: i -> the linear map x -> A_i x. The index may be traced.

    Example:
        >>> from mlox.solvers import Products
        >>> products = Products(lambda i: lambda x: (i + 1) * x)
        >>> products(2.0), products.at(2)(2.0)
        (2.0, 6.0)
    """

    at: Callable[[jax.Array | int], MatVec]

    def __call__(self, x: Tree) -> Tree:
        """Return the product of iteration 0."""
        return self.at(0)(x)


def product_at(matvec: MatVec, i: jax.Array | int) -> MatVec:
    """Return the linear map of an iteration: `matvec` itself unless it has many.

    Args:
        matvec: What a solver is given: a linear map, or `Products`.
        i: The index of the product, from 0; may be traced.

    Returns:
        A linear map.

    Example:
        A solver of your own whose products may differ says so:

        >>> import dataclasses
        >>> from mlox.solvers import Products, linear_solve, product_at, takes_draws
        >>> @dataclasses.dataclass(frozen=True)
        ... class Descent:
        ...     step: float = 0.5
        ...     def __call__(self, matvec, b, guess=None):
        ...         x = 0 * b if guess is None else guess
        ...         for i in range(3):
        ...             x = x + self.step * (b - product_at(matvec, i)(x))
        ...         return x, {}
        >>> _ = takes_draws.register(Descent, lambda solver: True)
        >>> x, _ = linear_solve(Descent(), Products(lambda i: lambda x: i * x), 1.0)
        >>> print(x)
        0.5
    """
    return matvec.at(i) if isinstance(matvec, Products) else matvec


def map_products(change: Callable[[MatVec], MatVec], matvec: MatVec) -> MatVec:
    """Return a linear map, or each of many, changed."""
    if isinstance(matvec, Products):
        return Products(lambda i: change(matvec.at(i)))
    return change(matvec)


def skip_first(matvec: MatVec) -> MatVec:
    """Return a linear map, or many without the first of them."""
    if isinstance(matvec, Products):
        return Products(lambda i: matvec.at(i + 1))
    return matvec


@functools.singledispatch
def takes_draws(solver: Any) -> bool:
    """Return whether each product of a solver may be with a matrix of its own.

    Then it calls `product_at(matvec, i)` for its i-th product. To register one:
    `@takes_draws.register` on a function whose argument is annotated with its class.

    Args:
        solver: a `Solver`.

    Returns:
        False unless registered: the solver needs one matrix.

    Example:
        >>> from mlox.solvers import CG, Neumann, takes_draws
        >>> takes_draws(CG()), takes_draws(Neumann())
        (False, True)
    """
    del solver
    return False
