"""Draws: adjoint systems whose products go round several batches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from mlox._utils.types import PyTree
from mlox.methods._base import Answer
from mlox.solvers import Products

# With H_i the Hessian on the i-th last batch, a recursion such as
# lambda <- lambda + a (v - H_i lambda) sees another matrix in each step. If the draws
# are independent, so are its factors, and the mean of their product is the product of
# their means: for H the mean of H_i,
#
#     E[a sum_q prod_{i < q} (I - a H_i) v] = a sum_q (I - a H)^q v.
#
# With one batch for all products the mean is that of the powers, and is biased.


@functools.singledispatch
def count_draws(method: object) -> int:
    """Return how many of the last draws of a window a method asks for.

    `mlox.Answer.draws` has that many; it is None for a method that asks for one. To
    register one: `@count_draws.register` on a function whose argument is annotated with
    its class.

    Args:
        method: A method.

    Returns:
        1 unless registered.

    Example:
        >>> import mlox
        >>> mlox.methods.count_draws(mlox.Implicit(mlox.Neumann(5), draws=3))
        3
    """
    del method
    return 1


def drawn_products(answer: Answer, draws: int) -> Products:
    """Return the products v -> (dG_i/dy)^T v, of which the i-th uses draw i mod draws.

    An answer without draws has a single one.
    """

    def at(i: Any) -> Callable[[PyTree], PyTree]:
        one = answer.residual if answer.draws is None else answer.draws(i % draws)
        if answer.is_symmetric:
            return lambda v: jax.jvp(one, (answer.point,), (v,))[1]
        return lambda v: jax.vjp(one, answer.point)[1](v)[0]

    return Products(at)
