"""Richardson's iteration."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mlox._utils.describe import show_call
from mlox._utils.tree import add_scaled, scale, vdot
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec, System, serves
from mlox.solvers._iterate import check_solver, repeat, report, start
from mlox.solvers._power import choose_step
from mlox.solvers._products import product_at, takes_draws


@dataclasses.dataclass(frozen=True, repr=False)
class Richardson:
    """Solve a system by steps of a fixed size along the residual.

    `x <- x + step (b - (A + damping I) x)`, from the guess or zero: gradient descent on
    `<x, A x> / 2 - <b, x>`. It converges if every eigenvalue of `A + damping I` lies
    between 0 and `2 / step`, and grows without bound otherwise. There is no inner
    product, and n runs of one iteration, each from the end of the last, are one run of
    n: made for `mlox.Implicit(solver, warm_start=True)`. From zero, K + 1 iterations
    are the sum of `mlox.Neumann(iterations=K)`.

    From zero the first iteration takes no product, so it takes `iterations - 1`, and
    from a guess `iterations`. The reported residual is that before the last iteration:
    it costs no product, and if the iteration converges that of `x` is smaller.

    Without a `step` ten more products go, in each solve, to a power iteration from a
    fixed vector, and the step is 0.9 over the largest eigenvalue that it finds: safe,
    unless that is less than 0.45 of the true one. With few iterations give a step.

    Attributes:
        iterations: the number of iterations.
        step: their size, best just below 1 over the largest eigenvalue of `A`; None to
            find it.
        damping: added to the diagonal of `A`.
        unroll: whether to write the loop out; None: on CPU, around a convolution.

    References:
        Richardson, The approximate arithmetical solution by finite differences of
        physical problems, Philosophical Transactions A, 1910.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlox.solvers import Richardson
        >>> solver = Richardson(iterations=3, step=0.5)
        >>> x, info = solver(lambda x: x, jnp.ones(2))
        >>> print(x, info["residual"], info["iterations"])
        [0.875 0.875] 0.25 2
        >>> print(solver(lambda x: x, jnp.ones(2), x)[0])
        [0.984375 0.984375]
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
        """Return the last iterate and its report, see `Solver`."""
        # In units of x, not counted from the guess: every iteration rounds alike, where
        # ever it starts.
        first = start(self, matvec, b, guess)
        size, used = choose_step(self.step, first)
        b = jax.tree.map(jnp.asarray, b)
        x = jax.tree.map(jnp.zeros_like, b) if first.guess is None else first.guess

        def step(i: Any, state: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
            x, r = state
            x = add_scaled(x, size, r)
            # Not r - step A r, which saves nothing and gathers rounding errors.
            return x, add_scaled(b, -1.0, product_at(first.product, i)(x))

        more = self.iterations - 1
        r = scale(first.unit, first.r)
        x, r = repeat(step, (x, r), more, first.unroll)
        scaled = scale(1 / first.unit, r)
        info = report(vdot(scaled, scaled), first.bb, first.used + more + used)
        return add_scaled(x, size, r), info

    __repr__ = show_call


serves.register(Richardson, lambda solver: System.DEFINITE)
takes_draws.register(Richardson, lambda solver: True)
