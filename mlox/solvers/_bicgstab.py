"""Stabilized biconjugate gradients."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlox._utils.describe import show_call
from mlox._utils.tree import add_scaled, epsilon, find_unit, largest, scale, vdot
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec
from mlox.solvers._iterate import (
    Start,
    check_solver,
    divide,
    iterate,
    report,
    start,
)


@dataclasses.dataclass(frozen=True, repr=False)
class BiCGStab:
    """Solve a general system by stabilized biconjugate gradients.

    Each iteration takes two products, and memory does not grow with their number,
    unlike that of `GMRES`. Convergence is not monotone, and breaks down for a
    skew-symmetric `A`, and for the system of some towers (the residual tells). The
    iteration stops at a residual of machine precision.

    Attributes:
        iterations: the largest number of iterations; the products, reported as
            `"iterations"`, are twice as many, and one more with a guess.
        tolerance: stop at a residual of `tolerance` times the norm of `b`.
        damping: added to the diagonal of `A`.
        unroll: whether to write the loop out; None: on CPU, around a convolution.

    References:
        van der Vorst, Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG for
        the solution of nonsymmetric linear systems, SIAM J. Sci. Stat. Comput., 1992.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlox.solvers import BiCGStab
        >>> A = jnp.array([[2.0, 1.0], [0.0, 3.0]])
        >>> x, info = BiCGStab()(lambda x: A @ x, jnp.array([3.0, 3.0]))
        >>> print(jnp.round(x), info["residual"] < 1e-6)
        [1. 1.] True
    """

    iterations: int = 50
    tolerance: float = 0.0
    damping: float = 0.0
    unroll: bool | None = None

    def __post_init__(self) -> None:
        check_solver(self)

    def __call__(
        self, matvec: MatVec, b: Tree, guess: Tree | None = None
    ) -> tuple[Tree, Info]:
        """Return the last iterate and its report, see `Solver`."""
        first = start(self, matvec, b, guess)
        r, rr = first.r, first.rr
        enough = max(self.tolerance, epsilon(r)) ** 2 * first.bb
        active = (rr > enough) & jnp.isfinite(rr)
        state = iterate(
            lambda state: _step(first, enough, state),
            _State(first.zeros(), r, r, rr, rr, active, jnp.int32(first.used)),
            self.iterations,
            (lambda state: state.active) if self.tolerance else None,
            first.unroll,
        )
        return first.finish(state.x), report(state.rr, first.bb, state.used)

    __repr__ = show_call


class _State(NamedTuple):
    """The iterate, its residual and direction, `rho` = <shadow, r>, `rr` = <r, r>."""

    x: Tree
    r: Tree
    p: Tree
    rho: jax.Array
    rr: jax.Array
    active: jax.Array
    used: jax.Array


def _step(first: Start, enough: jax.Array, state: _State) -> _State:
    """Make one iteration, or none if the state is final."""
    # In the letters of van der Vorst, with the first residual as the shadow residual:
    #
    #     v = A p      alpha = rho / <shadow, v>      s = r - alpha v
    #     t = A s      omega = <t, s> / <t, t>        r' = s - omega t
    #     x' = x + alpha p + omega s                  rho' = <shadow, r'>
    #     beta = (rho' / rho) (alpha / omega)         p' = r' + beta (p - omega v)
    #
    # r = b - A x holds for any alpha and omega, so a zero denominator only skips its
    # part of the step: without alpha it is a step of minimal residual, after which p
    # starts anew. A step that overflows is not taken. As <t, t> has the square of the
    # scale of A, it is computed in units of t.
    product, shadow = first.product, first.r
    x, r, p, rho, _, active, used = state
    v = product(p)
    alpha = divide(rho, vdot(shadow, v))
    s = add_scaled(r, -alpha, v)
    t = product(s)
    unit = find_unit(t)
    t = scale(1 / unit, t)
    omega_t = divide(vdot(t, s), vdot(t, t))
    omega = omega_t / unit
    r_next = add_scaled(s, -omega_t, t)
    rho_next = vdot(shadow, r_next)
    rr_next = vdot(r_next, r_next)
    beta = divide(rho_next, rho) * divide(alpha, omega)
    change = add_scaled(scale(alpha, p), omega, s)
    finite = jnp.isfinite(rr_next) & jnp.isfinite(first.unit * largest(change))
    sound = active & finite
    taken = _State(
        add_scaled(x, 1.0, change),
        r_next,
        add_scaled(r_next, beta, add_scaled(p, -omega, v)),
        rho_next,
        rr_next,
        rr_next > enough,
        used,
    )
    final = state._replace(active=jnp.zeros_like(active))
    state = jax.tree.map(lambda new, old: jnp.where(sound, new, old), taken, final)
    return state._replace(used=used + 2 * active.astype(used.dtype))
