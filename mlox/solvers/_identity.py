"""The identity in place of the inverse."""

import dataclasses

from mlox._utils.describe import show_call
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec, System, serves


@dataclasses.dataclass(frozen=True, repr=False)
class Identity:
    """Return `x = b`, as if `A` were the identity.

    The cheapest choice: exact for one gradient step of size 1 from the optimum. It
    makes no product, ignores the guess and reports nothing.

    References:
        Luketina et al., Scalable gradient-based tuning of continuous regularization
        hyperparameters, ICML 2016 (T1-T2).

    Example:
        >>> import jax.numpy as jnp
        >>> from mlox.solvers import Identity
        >>> x, info = Identity()(lambda x: 2.0 * x, jnp.ones(2))
        >>> print(x, info)
        [1. 1.] {}
    """

    def __call__(
        self, matvec: MatVec, b: Tree, guess: Tree | None = None
    ) -> tuple[Tree, Info]:
        """Return `b` and an empty report, see `Solver`."""
        del matvec, guess
        return b, {}

    __repr__ = show_call


serves.register(Identity, lambda solver: System.NONE)
