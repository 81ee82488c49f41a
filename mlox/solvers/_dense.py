"""The direct solution of a small system."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mlox._utils.describe import show_call
from mlox._utils.tree import find_unit, ravel, scale, vdot, widen
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec
from mlox.solvers._iterate import add_damping, check_solver, divide, report


@dataclasses.dataclass(frozen=True, repr=False)
class Dense:
    """Build the matrix and solve the system directly, by LU factors.

    Takes n products at once (under `vmap`), n^2 numbers of memory and n^3 operations
    for n unknowns in all: for small systems, and as the reference for other solvers.
    The guess is ignored. Where the factors fail, as for a singular `A`, `x` is the
    shortest vector of least residual, by singular values. The reported residual is that
    of `x`.

    Attributes:
        damping: added to the diagonal of `A`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlox.solvers import Dense
        >>> A = jnp.array([[0.0, 1.0], [2.0, 0.0]])
        >>> x, info = Dense()(lambda x: A @ x, jnp.array([3.0, 4.0]))
        >>> print(x, info["iterations"])
        [2. 3.] 2
        >>> x, info = Dense()(lambda x: x.sum() * jnp.ones(2), jnp.array([2.0, 2.0]))
        >>> print(x.round(3), info["residual"] < 1e-6)
        [1. 1.] True
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
        unit = find_unit(b)
        flat, unravel = ravel(scale(1 / unit, jax.tree.map(jnp.asarray, b)))
        # LAPACK and cuSOLVER have no LU factors in 16 bits.
        wide = widen(flat)

        def column(vector: jax.Array) -> jax.Array:
            return ravel(product(unravel(vector)))[0].astype(wide.dtype)

        # The columns of A are A e_1, ..., A e_n.
        identity = jnp.eye(flat.size, dtype=flat.dtype)
        matrix = jax.vmap(column, out_axes=1)(identity)
        x, rr = _solve(matrix, wide)
        solution = scale(unit, unravel(x.astype(flat.dtype)))
        return solution, report(rr, vdot(wide, wide), flat.size)

    __repr__ = show_call


def _solve(matrix: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return x of `A x = b`, differentiable at any order, and `|b - A x|^2`."""

    def product(x: jax.Array) -> jax.Array:
        return jnp.dot(matrix, x, precision=lax.Precision.HIGHEST)

    # The derivatives are further solutions: dx of A dx = db - dA x.
    x = lax.custom_linear_solve(
        product,
        b,
        solve=lambda _, b: _solve_or_fit(matrix, b),
        transpose_solve=lambda _, b: _solve_or_fit(matrix.T, b),
    )
    r = b - product(x)
    return x, vdot(r, r)


def _solve_or_fit(matrix: jax.Array, b: jax.Array) -> jax.Array:
    """Return x of `A x = b` by LU factors, or else by singular values."""

    def evaluate(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        r = b - jnp.dot(matrix, x, precision=lax.Precision.HIGHEST)
        return x, vdot(r, r)

    def improve(state: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        x, rr, _ = state
        shortest, least = evaluate(_solve_least_squares(matrix, b))
        better = ~(least >= rr)  # also where rr is NaN
        return jnp.where(better, shortest, x), jnp.where(better, least, rr), False

    # LU factors leave a residual of about eps |A| |x|. One of sqrt(eps) |b| means that
    # x is huge: mere rounding along a null vector. A loop that runs at most once takes
    # no time where it need not run; under vmap a `cond` would always take both ways.
    x, rr = evaluate(jnp.linalg.solve(matrix, b))
    failed = ~(rr <= jnp.finfo(b.dtype).eps * vdot(b, b))
    return lax.while_loop(lambda state: state[2], improve, (x, rr, failed))[0]


def _solve_least_squares(matrix: jax.Array, b: jax.Array) -> jax.Array:
    """Return the shortest x of least residual, `V S^+ U^T b`."""
    U, s, VT = jnp.linalg.svd(matrix)
    positive = s > jnp.finfo(s.dtype).eps * len(s) * jnp.max(s, initial=0)
    along = jnp.dot(U.T, b, precision=lax.Precision.HIGHEST)
    along = divide(along, jnp.where(positive, s, 0))
    return jnp.dot(VT.T, along, precision=lax.Precision.HIGHEST)
