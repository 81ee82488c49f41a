"""Conjugate gradients."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlox._utils.describe import show_call
from mlox._utils.fields import Kind, check, optional
from mlox._utils.tree import add_scaled, vdot
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec, System, serves
from mlox.solvers._iterate import (
    Start,
    check_solver,
    divide,
    iterate,
    report,
    start,
)
from mlox.solvers._preconditioned import Preconditioner, solve_preconditioned

PRECONDITIONER = optional(
    Kind(
        "a preconditioner such as mlox.Nystrom()",
        lambda x: isinstance(x, Preconditioner) and not isinstance(x, type),
    )
)


@dataclasses.dataclass(frozen=True, repr=False)
class CG:
    """Solve a symmetric positive definite system by conjugate gradients.

    Iterate k minimizes `<x, (A + damping I) x> / 2 - <b, x>` over the guess plus the
    span of `r, A r, ..., A^(k-1) r`, with `r` the first residual. Each iteration takes
    one product and two inner products, and a guess takes one product.

    The reported residual is the one that the iteration updates: far past convergence it
    still decreases, while `b - A x` stays at rounding errors. On an indefinite system
    the iterates stay finite, but need not approach the solution.

    Attributes:
        iterations: the number of iterations. With `tolerance=0` exactly that many are
            made, unless the residual becomes zero (in float32, below 2.5e-8 of `b`).
        tolerance: stop at a residual of `tolerance` times the norm of `b`.
        damping: added to the diagonal of `A`.
        unroll: whether to write the loop out; None: on CPU, around a convolution.
        preconditioner: such as `mlox.Nystrom(rank)`, see `Preconditioner`: a map near
            the inverse, up to a factor, found before the first iteration by products
            that count in `"iterations"`. Fewer iterations are needed where a few
            eigenvalues are far above the others. The tolerance remains one of
            `b - A x`.

    References:
        Hestenes and Stiefel, Methods of conjugate gradients for solving linear
        systems, Journal of Research of the National Bureau of Standards, 1952;
        with a preconditioner: Frangella, Tropp and Udell, Randomized Nystrom
        preconditioning, SIAM Journal on Matrix Analysis and Applications, 2023.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlox.solvers import CG
        >>> A = jnp.array([[2.0, 1.0], [1.0, 3.0]])
        >>> x, info = CG(iterations=2)(lambda x: A @ x, jnp.array([3.0, 4.0]))
        >>> print(jnp.round(x), info["iterations"])
        [1. 1.] 2
    """

    iterations: int = 10
    tolerance: float = 0.0
    damping: float = 0.0
    unroll: bool | None = None
    preconditioner: Preconditioner | None = None

    def __post_init__(self) -> None:
        check("CG: preconditioner", self.preconditioner, PRECONDITIONER)
        check_solver(self, preconditioner=PRECONDITIONER)

    def __call__(
        self, matvec: MatVec, b: Tree, guess: Tree | None = None
    ) -> tuple[Tree, Info]:
        """Return the last iterate and its report, see `Solver`."""
        first = start(self, matvec, b, guess)
        r, rr = first.r, first.rr
        least = max(self.tolerance**2, _nothing(rr.dtype))
        enough = least * first.bb
        if self.preconditioner is not None:
            inverse, used = self.preconditioner.precondition(matvec, self.damping, r)
            if inverse is not None:
                return solve_preconditioned(self, first, inverse, enough, used)
        length = jnp.where((rr > enough) & jnp.isfinite(rr), jnp.sqrt(rr), 0)
        state = iterate(
            lambda state: _step(first, least, state),
            _State(first.zeros(), r, r, rr, length, jnp.int32(first.used)),
            self.iterations,
            (lambda state: state.length > 0) if self.tolerance else None,
            first.unroll,
        )
        return first.finish(state.x), report(state.rr, first.bb, state.used)

    __repr__ = show_call


class _State(NamedTuple):
    """The iterate, its residual and direction; a final state has `length` = 0."""

    x: Tree
    r: Tree
    p: Tree
    rr: jax.Array
    length: jax.Array
    used: jax.Array


def _nothing(dtype: Any) -> float:
    """Return the part of `<b, b>` below which `<r, r>` counts as zero.

    In float32 it is 6e-16, a residual of 2.5e-8, less than the rounding errors of one
    product. So `<p, A p>` is exact for eigenvalues of `A` down to 1e-20.
    """
    return float(jnp.finfo(dtype).tiny) ** 0.4


def _step(first: Start, least: float, state: _State) -> _State:
    """Make one iteration, or none if the state is final."""
    # Equations (3:1) of Hestenes and Stiefel, whose a and b are called alpha and beta:
    #
    #     alpha = |r|^2 / <p, A p>      x' = x + alpha p      r' = r - alpha A p
    #     beta = |r'|^2 / |r|^2         p' = r' + beta p
    #
    # The guards are on scalars. A final state has p = 0, hence alpha = 0, for good. It
    # is reached at a small residual, at a direction without curvature (also if
    # <p, A p> underflows), and before x or <r', r'> overflows:
    #
    #     |r' + beta p|^2 <= 2 (|r'|^2 + beta^2 |p|^2) = 2 length'^2,
    #
    # so alpha length bounds the change of x. (Both without the 2 if A is definite,
    # since then r' and p are orthogonal.) In a final state r may be infinite, so p must
    # be selected, not multiplied by zero.
    #
    # On a CPU an iteration with short vectors takes as long as its kernels are many:
    # the length is carried, as a root that several kernels read would be one more.
    x, r, p, rr, length, used = state
    active = length > 0
    Ap = first.product(p)
    alpha = divide(rr, vdot(p, Ap))
    r = add_scaled(r, -alpha, Ap)
    rr_next = vdot(r, r)
    change = alpha * length
    finite = (
        jnp.isfinite(change) & jnp.isfinite(first.unit * change) & jnp.isfinite(rr_next)
    )
    sound = active & (alpha != 0) & finite
    x = add_scaled(x, jnp.where(sound, alpha, 0), p)
    beta = divide(rr_next, rr)
    pp = rr_next + (beta * length) ** 2
    proceed = sound & (rr_next > least * first.bb) & jnp.isfinite(pp)
    p = add_scaled(r, beta, p)
    p = jax.tree.map(lambda leaf: jnp.where(proceed, leaf, 0), p)
    length = jnp.where(proceed, jnp.sqrt(pp), 0)
    rr = jnp.where(sound, rr_next, rr)
    return _State(x, r, p, rr, length, used + active.astype(used.dtype))


serves.register(CG, lambda solver: System.DEFINITE)
