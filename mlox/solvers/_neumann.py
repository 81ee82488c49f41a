"""The truncated Neumann series."""

import dataclasses
from typing import Any

from mlox._utils.describe import show_call
from mlox._utils.tree import add_scaled, scale
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec, System, serves
from mlox.solvers._iterate import check_solver, start
from mlox.solvers._power import choose_step
from mlox.solvers._products import product_at, takes_draws
from mlox.solvers._series import sum_powers


@dataclasses.dataclass(frozen=True, repr=False)
class Neumann:
    """Sum the first terms of the Neumann series of the inverse.

    `x = step * sum over i = 0..iterations of (I - step (A + damping I))^i b`, which
    takes `iterations` products and no inner product. It converges if every
    eigenvalue of `A + damping I` lies between 0 and `2 / step`, and grows without
    bound otherwise. The guess is ignored: the series starts at `b`.

    Without a `step` ten more products go, in each solve, to a power iteration from a
    fixed vector, and the step is 0.9 over the largest eigenvalue that it finds: safe,
    unless that is less than 0.45 of the true one. It is the same for every `b`.

    The reported residual is that of the sum without its last term: it costs no product,
    and if the series converges the residual of `x` is smaller.

    Attributes:
        iterations: the number of products, one less than the number of terms.
        step: the factor of `A`, best just below 1 over its largest eigenvalue; None
            to find it.
        damping: added to the diagonal of `A`.
        unroll: whether to write the loop out; None: on CPU, around a convolution.

    References:
        Lorraine, Vicol and Duvenaud, Optimizing millions of hyperparameters by
        implicit differentiation, AISTATS 2020.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlox.solvers import Neumann
        >>> x, info = Neumann(iterations=2, step=0.5)(lambda x: x, jnp.ones(2))
        >>> print(x, info["residual"])
        [0.875 0.875] 0.25
    """

    iterations: int = 10
    step: float | None = None
    damping: float = 0.0
    unroll: bool | None = None

    def __post_init__(self) -> None:
        check_solver(self)

    def __call__(
        self, matvec: MatVec, b: Tree, guess: Tree | None = None
    ) -> tuple[Tree, Info]:
        """Return the sum and its report, see `Solver`."""
        # With a = step, the terms t_i = (I - a A)^i b follow
        #
        #     t_(i+1) = t_i + A (-a t_i),
        #
        # the factor inside the product, where the update of gradient descent has it: so
        # `mlox.FixedPoint` with `optax.sgd(a)` is this sum to the last bit. A sum
        # telescopes under A, so its residual is the next term, as a norm for free:
        #
        #     A a (t_0 + ... + t_(k-1)) = sum of (t_i - t_(i+1)) = b - t_k.
        del guess
        first = start(self, matvec, b, None)
        size, used = choose_step(self.step, first)

        def advance(i: Any, term: Tree) -> Tree:
            moved = product_at(first.product, i)(scale(-size, term))
            return add_scaled(term, 1.0, moved)

        total, info = sum_powers(advance, first.r, self.iterations, first.unroll)
        info = {**info, "iterations": info["iterations"] + used}
        return scale(first.unit, scale(size, total)), info

    __repr__ = show_call


serves.register(Neumann, lambda solver: System.DEFINITE)
takes_draws.register(Neumann, lambda solver: True)
