"""The truncated Neumann series."""

import dataclasses

import jax
import jax.numpy as jnp

from mlox._utils.convolutions import unrolls
from mlox._utils.fields import COUNT, NOT_NEGATIVE, POSITIVE, check_fields
from mlox._utils.tree import add_scaled, vdot
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec, System, serves
from mlox.solvers._iterate import UNROLL, damped, iterate, report


@dataclasses.dataclass(frozen=True)
class Neumann:
    """Sum the first terms of the Neumann series of the inverse.

    `x = step * sum over i = 0..iterations of (I - step (A + damping I))^i b`, which
    takes `iterations` products and no inner product. It converges if every
    eigenvalue of `A + damping I` lies between 0 and `2 / step`, and grows without
    bound otherwise. The guess is ignored: the series starts at `b`.

    The residual that is reported is that of the sum without its last term, which is
    the norm of `(I - step A)^iterations b` and costs no product; the residual of `x`
    itself is smaller if the series converges.

    Attributes:
        iterations: the number of products, one less than that of terms.
        step: the factor of `A`, best just below 1 over its largest eigenvalue.
        damping: added to the diagonal of `A`.
        unroll: write the loop out. None: on CPU if a product with `A` holds a
            convolution (which XLA runs 11 to 30 times slower inside a loop).

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
    step: float = 1.0
    damping: float = 0.0
    unroll: bool | None = None

    def __post_init__(self) -> None:
        check_fields(
            self, iterations=COUNT, step=POSITIVE, damping=NOT_NEGATIVE, unroll=UNROLL
        )

    def __call__(
        self, matvec: MatVec, b: Tree, guess: Tree | None = None
    ) -> tuple[Tree, Info]:
        """Return the sum and its report, see `Solver`."""
        del guess
        product = damped(matvec, self.damping)
        b = jax.tree.map(jnp.asarray, b)

        def step(state: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
            total, term = state
            term = add_scaled(term, -self.step, product(term))
            return add_scaled(total, 1.0, term), term

        unroll = unrolls(matvec, b) if self.unroll is None else self.unroll
        total, term = iterate(step, (b, b), self.iterations, None, unroll)
        x = jax.tree.map(lambda leaf: self.step * leaf, total)
        return x, report(vdot(term, term), vdot(b, b), self.iterations)


@serves.register
def _(solver: Neumann) -> System:
    del solver
    return System.DEFINITE
