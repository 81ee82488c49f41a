"""Conjugate gradients."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlox._utils.convolutions import unrolls
from mlox._utils.fields import COUNT, NOT_NEGATIVE, check_fields
from mlox._utils.tree import add_scaled, vdot
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec, System, serves
from mlox.solvers._iterate import UNROLL, damped, divide, iterate, report, start


@dataclasses.dataclass(frozen=True)
class CG:
    """Solve a symmetric positive definite system by conjugate gradients.

    Iterate k minimizes `<x, (A + damping I) x> / 2 - <b, x>` over the guess plus the
    span of `r, A r, ..., A^(k-1) r`, with `r` the first residual. One product and two
    inner products are spent in each iteration, and one product on a guess.

    The residual that is reported is the one that the iteration updates: on a system
    that is iterated far past its convergence it goes on to fall where `b - A x`
    stays at rounding errors. On an indefinite system the iterates stay finite, but
    need not approach the solution.

    Attributes:
        iterations: how many iterations are made. With `tolerance=0` exactly that many,
            unless the residual becomes zero.
        tolerance: stop when the norm of the residual has fallen to `tolerance` times
            that of `b`.
        damping: added to the diagonal of `A`.
        unroll: write the loop out. None: on CPU if a product with `A` holds a
            convolution (which XLA runs 11 to 30 times slower inside a loop).

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
        check_fields(
            self,
            iterations=COUNT,
            tolerance=NOT_NEGATIVE,
            damping=NOT_NEGATIVE,
            unroll=UNROLL,
        )

    def __call__(
        self, matvec: MatVec, b: Tree, guess: Tree | None = None
    ) -> tuple[Tree, Info]:
        """Return the last iterate and its report, see `Solver`."""
        product = damped(matvec, self.damping)
        x, r, rr, bb, used = start(product, b, guess)
        enough = self.tolerance**2 * bb
        pp = jnp.where((rr > enough) & jnp.isfinite(rr), rr, 0)
        state = iterate(
            lambda state: _step(product, enough, state),
            _State(x, r, r, rr, pp, jnp.int32(used)),
            self.iterations,
            (lambda state: state.pp > 0) if self.tolerance else None,
            unrolls(matvec, r) if self.unroll is None else self.unroll,
        )
        return state.x, report(state.rr, bb, state.used)


class _State(NamedTuple):
    """The iterate, its residual and direction; `pp` = 0 says that it is final."""

    x: Tree
    r: Tree
    p: Tree
    rr: jax.Array
    pp: jax.Array
    used: jax.Array


def _step(product: MatVec, enough: jax.Array, state: _State) -> _State:
    """Make one iteration, or none if the state is final.

    All guards are on scalars, so a vector costs what it costs without them. A final
    state has alpha = 0 for good. It is reached at a small residual, at a direction
    without curvature (also if p.Ap underflows), and before x overflows: pp bounds
    <p, p>, as |r + beta p|^2 <= 2 (rr + beta^2 pp), so alpha^2 pp bounds the change of
    x (both without the 2 if A is definite, since then r and p are orthogonal). What a
    final step makes of r may be large, and A r must not overflow: that is so up to
    |A| = 4e9 in float32, the fourth root of its largest number.
    """
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
    return _State(
        x, r, p, rr_next, jnp.where(proceed, pp, 0), used + active.astype(used.dtype)
    )


@serves.register
def _(solver: CG) -> System:
    del solver
    return System.DEFINITE
