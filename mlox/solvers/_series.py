"""The sum of the powers of a linear map, applied to a vector."""

from collections.abc import Callable
from typing import Any

from mlox._utils.tree import add_scaled, vdot
from mlox._utils.types import Tree
from mlox.solvers._base import Info
from mlox.solvers._iterate import repeat, report


def sum_powers(
    advance: Callable[[Any, Tree], Tree], first: Tree, powers: int, unroll: bool
) -> tuple[Tree, Info]:
    """Return `b + M b + ... + M^powers b` and a report.

    The sum telescopes, `(I - M) (b + ... + M^(k-1) b) = b - M^k b`: the norm of its
    last term is the residual of `(I - M) x = b` at the sum without that term.

    Args:
        advance: the linear map `(i, v) -> M v`, which may be another one for each
            i = 0, 1, ...
        first: b, in units of its size (`mlox._utils.tree.find_unit`), so that its
            squares neither underflow nor overflow.
        powers: the number of applications of the map, one less than that of terms.
        unroll: whether to write the loop out.

    Returns:
        The sum, and the report, whose residual is relative to the norm of b.

    Example:
        >>> import jax.numpy as jnp
        >>> total, info = sum_powers(lambda i, v: v / 2, jnp.ones(2), 2, False)
        >>> print(total, info["residual"])
        [1.75 1.75] 0.25
    """

    def step(i: Any, state: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
        total, term = state
        term = advance(i, term)
        return add_scaled(total, 1.0, term), term

    total, last = repeat(step, (first, first), powers, unroll)
    return total, report(vdot(last, last), vdot(first, first), powers)
