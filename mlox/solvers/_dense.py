"""The direct solution of a small system."""

import dataclasses

import jax
import jax.numpy as jnp

from mlox._utils.tree import ravel, widen
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec
from mlox.solvers._iterate import add_damping, check_solver


@dataclasses.dataclass(frozen=True)
class Dense:
    """Build the matrix and solve the system directly, by LU factors.

    Takes n products at once (under `vmap`), n^2 numbers of memory and n^3 operations
    for n unknowns in all: for small systems, and as the reference for other solvers.
    The guess is ignored. The residual is not reported, since it would cost a product.
    Where `b` is zero, so is `x`, also for a singular `A`; damping makes a singular,
    positive semidefinite `A` regular.

    Attributes:
        damping: added to the diagonal of `A`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlox.solvers import Dense
        >>> A = jnp.array([[0.0, 1.0], [2.0, 0.0]])
        >>> x, info = Dense()(lambda x: A @ x, jnp.array([3.0, 4.0]))
        >>> print(x, info["iterations"])
        [2. 3.] 2
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        check_solver(self)

    def __call__(
        self, matvec: MatVec, b: Tree, guess: Tree | None = None
    ) -> tuple[Tree, Info]:
        """Return the solution and the number of products, see `Solver`."""
        del guess
        product = add_damping(matvec, self.damping)
        flat, unravel = ravel(b)
        # LAPACK and cuSOLVER have no LU factors in 16 bits.
        wide = widen(flat)

        def column(unit: jax.Array) -> jax.Array:
            return ravel(product(unravel(unit)))[0].astype(wide.dtype)

        # The columns of A are A e_1, ..., A e_n.
        identity = jnp.eye(flat.size, dtype=flat.dtype)
        matrix = jax.vmap(column, out_axes=1)(identity)
        solution = jnp.linalg.solve(matrix, wide).astype(flat.dtype)
        x = unravel(jnp.where(jnp.any(flat != 0), solution, jnp.zeros_like(flat)))
        return x, {"iterations": jnp.int32(flat.size)}
