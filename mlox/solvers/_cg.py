"""Conjugate gradients."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlox._utils.tree import add_scaled, vdot
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec, System, serves
from mlox.solvers._iterate import check_solver, divide, iterate, report, start


@dataclasses.dataclass(frozen=True)
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
            made, unless the residual becomes zero.
        tolerance: stop at a residual of `tolerance` times the norm of `b`.
        damping: added to the diagonal of `A`.
        unroll: whether to write the loop out; None: on CPU, around a convolution.

    References:
        Hestenes and Stiefel, Methods of conjugate gradients for solving linear
        systems, Journal of Research of the National Bureau of Standards, 1952.

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

    def __post_init__(self) -> None:
        check_solver(self)

    def __call__(
        self, matvec: MatVec, b: Tree, guess: Tree | None = None
    ) -> tuple[Tree, Info]:
        """Return the last iterate and its report, see `Solver`."""
        product, x, r, rr, bb, used, unroll = start(self, matvec, b, guess)
        enough = self.tolerance**2 * bb
        pp = jnp.where((rr > enough) & jnp.isfinite(rr), rr, 0)
        state = iterate(
            lambda state: _step(product, enough, state),
            _State(x, r, r, rr, pp, jnp.int32(used)),
            self.iterations,
            (lambda state: state.pp > 0) if self.tolerance else None,
            unroll,
        )
        return state.x, report(state.rr, bb, state.used)


class _State(NamedTuple):
    """The iterate, its residual and direction; a final state has `pp` = 0."""

    x: Tree
    r: Tree
    p: Tree
    rr: jax.Array
    pp: jax.Array
    used: jax.Array


def _step(product: MatVec, enough: jax.Array, state: _State) -> _State:
    """Make one iteration, or none if the state is final."""
    # Equations (3:1) of Hestenes and Stiefel, whose a and b are called alpha and beta:
    #
    #     alpha = |r|^2 / <p, A p>      x' = x + alpha p      r' = r - alpha A p
    #     beta = |r'|^2 / |r|^2         p' = r' + beta p
    #
    # All guards are on scalars, so a vector costs what it costs without them. A final
    # state has alpha = 0 for good. It is reached at a small residual, at a direction
    # without curvature (also if <p, A p> underflows), and before x overflows:
    #
    #     |r' + beta p|^2 <= 2 (|r'|^2 + beta^2 |p|^2) = 2 pp,
    #
    # so alpha^2 pp bounds the change of x. (Both without the 2 if A is definite, since
    # then r' and p are orthogonal.) What a final step makes of r may be large, and A r
    # must not overflow: it does not up to |A| = 4e9 in float32, the fourth root of its
    # largest number.
    x, r, p, rr, pp, used = state
    active = pp > 0
    Ap = product(p)
    alpha = divide(rr, vdot(p, Ap))
    sound = active & (alpha != 0) & jnp.isfinite(alpha**2 * pp)
    alpha = jnp.where(sound, alpha, 0)
    x = add_scaled(x, alpha, p)
    r = add_scaled(r, -alpha, Ap)
    rr_next = vdot(r, r)
    beta = divide(rr_next, rr)
    pp = rr_next + beta**2 * pp
    proceed = sound & (rr_next > enough) & jnp.isfinite(pp)
    p = add_scaled(r, jnp.where(proceed, beta, 0), p)
    pp = jnp.where(proceed, pp, 0)
    return _State(x, r, p, rr_next, pp, used + active.astype(used.dtype))


serves.register(CG, lambda solver: System.DEFINITE)
