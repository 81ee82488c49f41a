"""The inverse of a matrix of low rank and a multiple of the identity."""

import dataclasses

import jax
import jax.numpy as jnp

from mlox._utils.describe import show_call
from mlox._utils.fields import POSITIVE
from mlox._utils.tree import add_scaled, epsilon, scale
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec, System, serves
from mlox.solvers._iterate import check_solver, divide
from mlox.solvers._sketch import count_unknowns, sketch


@dataclasses.dataclass(frozen=True, repr=False)
class Nystrom:
    """Invert a randomized approximation of low rank: few products, all at once.

    With Y = A Omega for a random orthonormal Omega of `rank` columns, the Nystrom
    approximation of a positive semidefinite `A` is Y (Omega^T Y)^-1 Y^T = U l U^T, and
    the solution that of `(U l U^T + damping I) x = b`:

        x = U (l + damping)^-1 U^T b + (I - U U^T) b / damping.

    That takes `rank` products under one `vmap`, none of which waits for another, and
    `rank` vectors of memory. It is `(A + damping I)^-1 b` if the rank of `A` is no
    larger than `rank`, and for any `A` at `rank` = the number of unknowns, which `rank`
    is clipped to. It is the same linear map for every `b`, and the guess is ignored.

    **Not for matrices that are not of low rank.** An eigenvalue that the sketch misses
    counts as zero, so that its part of `b` is divided by `damping` alone. At one missed
    eigenvalue of 0.5 and a damping of 0.01 that part is 50 times too long, worse than
    `mlox.Identity`. Choose `damping` near the first eigenvalue that is missed, or use
    the sketch where it cannot do harm: `mlox.CG(preconditioner=mlox.Nystrom(...))`.

    Negative eigenvalues count as zero, too, so that on an indefinite `A` the result is
    finite, but not a solution. With `rank=0` it is `b / damping`.

    The report has no residual, which would take one more product.

    Attributes:
        rank: the number of products. 10 or 20 more than there are large eigenvalues
            make them accurate.
        damping: added to the diagonal of the approximation; more than 0.
        seed: of Omega. The same numbers in every call, and on every machine.

    References:
        Hataya and Yamada, Nystrom method for accurate and scalable implicit
        differentiation, AISTATS 2023; Frangella, Tropp and Udell, Randomized Nystrom
        preconditioning, SIAM Journal on Matrix Analysis and Applications, 2023.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlox.solvers import Nystrom
        >>> A = jnp.diag(jnp.array([3.0, 1.0, 0.0, 0.0, 0.0]))
        >>> solver = Nystrom(rank=2, damping=0.5)
        >>> x, info = solver(lambda x: A @ x, jnp.ones(5))
        >>> print(jnp.round(3.5 * x, 3), info["iterations"])
        [1.    2.333 7.    7.    7.   ] 2
    """

    rank: int = 20
    damping: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        check_solver(self, damping=POSITIVE)

    def __call__(
        self, matvec: MatVec, b: Tree, guess: Tree | None = None
    ) -> tuple[Tree, Info]:
        """Return the solution for the approximation, and the number of products."""
        del guess
        b = jax.tree.map(jnp.asarray, b)
        rank = min(self.rank, count_unknowns(b))
        info: Info = {"iterations": jnp.int32(rank)}
        if rank == 0:
            return scale(1 / self.damping, b), info
        found = sketch(matvec, b, rank, self.seed)
        damping = self.damping / found.unit
        damped = found.values + damping
        whole = rank == count_unknowns(b)  # I - U U^T = 0
        weights = divide(damping if whole else -found.values, damped)

        part = found.apply(weights, b)
        x = part if whole else add_scaled(b, 1.0, part)
        return scale(1 / self.damping, x), info

    def precondition(
        self, matvec: MatVec, damping: float, b: Tree
    ) -> tuple[MatVec | None, int]:
        """Return a map near the inverse, up to a factor, and the number of products.

        With `l_r` the least of the eigenvalues found, and rho the sum of the two
        dampings, it is

            v -> (l_r + rho) U (l + rho)^-1 U^T v + (I - U U^T) v,

        which takes the large eigenvalues of `A` to about `l_r`, and leaves the others.

        Args:
            matvec: the map `x -> A x`.
            damping: what the system adds to the diagonal of `A`.
            b: a pytree like `x`: its shapes are used.

        Returns:
            The map, None with `rank=0`, and the number of products that were made.
        """
        b = jax.tree.map(jnp.asarray, b)
        rank = min(self.rank, count_unknowns(b))
        if rank == 0:
            return None, 0
        found = sketch(matvec, b, rank, self.seed)
        damped = found.values + (self.damping + damping) / found.unit
        # Rounding errors must not make it indefinite.
        least = 100 * epsilon(b)
        weights = 1 - jnp.maximum(divide(damped[0], damped), least)
        return lambda v: add_scaled(v, -1.0, found.apply(weights, v)), rank

    __repr__ = show_call


serves.register(Nystrom, lambda solver: System.DEFINITE)
