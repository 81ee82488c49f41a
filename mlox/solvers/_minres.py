"""Minimal residuals for symmetric systems."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlox._utils.describe import show_call
from mlox._utils.tree import add_scaled, epsilon, find_unit, largest, scale, vdot
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


@dataclasses.dataclass(frozen=True, repr=False)
class MINRES:
    """Solve a symmetric system, of either sign, by minimal residuals.

    Iterate k minimizes the norm of `b - (A + damping I) x` over the guess plus the span
    of `r, A r, ..., A^(k-1) r`, with `r` the first residual, like `mlox.GMRES`. Since
    `A` is symmetric, three vectors are enough to extend that span: an iteration takes
    one product and two inner products, and the memory is that of six vectors, however
    many iterations there are. On the other hand rounding errors are not taken out, so
    that badly conditioned systems need more iterations than with GMRES. The systems of
    towers, three levels and more, are symmetric and indefinite.

    The iteration stops at a residual of machine precision, and if the span no longer
    grows. The reported residual is the one that the iteration updates and an estimate
    of the rounding errors.

    Attributes:
        iterations: the largest number of products with `A`, and one more for a guess.
        tolerance: stop at a residual of `tolerance` times the norm of `b`.
        damping: added to the diagonal of `A`: for eigenvalues of either sign this may
            bring one near zero.
        unroll: whether to write the loop out, at its full length; None: on CPU, around
            a convolution.

    References:
        Paige and Saunders, Solution of sparse indefinite systems of linear equations,
        SIAM Journal on Numerical Analysis, 1975.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlox.solvers import MINRES
        >>> A = jnp.array([[0.0, 1.0], [1.0, -2.0]])
        >>> x, info = MINRES()(lambda x: A @ x, jnp.array([3.0, -5.0]))
        >>> print(jnp.round(x), info["residual"] < 1e-6)
        [1. 3.] True
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
        precision = epsilon(first.r)
        enough = max(self.tolerance, precision) * jnp.sqrt(first.bb)
        state = iterate(
            lambda state: _step(first, precision, enough, state),
            _begin(first, enough),
            self.iterations,
            lambda state: state.active,
            first.unroll,
        )
        rounding = precision * state.size * jnp.sqrt(vdot(state.x, state.x))
        info = report(state.left**2 + rounding**2, first.bb, state.used)
        return first.finish(scale(1 / state.unit, state.x)), info

    __repr__ = show_call


# Letters as in Paige and Saunders. Lanczos' process makes orthonormal v_k, in which A
# is tridiagonal,
#
#     beta_{k+1} v_{k+1} = A v_k - alpha_k v_k - beta_k v_{k-1},    v_1 = r / |r|,
#
# and Givens rotations turn this matrix into an upper triangle with the rows
# (gamma_k, delta_{k+1}, epsilon_{k+2}). The directions d_k solve
#
#     gamma_k d_k = v_k - delta_k d_{k-1} - epsilon_k d_{k-2},
#
# and x_k = x_{k-1} + phi_k d_k has the residual |r| times the product of the sines.
# All of it is in units of A, the size of A v_1, and x in those of its inverse: squares
# neither underflow nor overflow.


class _State(NamedTuple):
    """An iterate, two vectors of Lanczos' process and two directions.

    `left` is the norm of the residual, `size` that of the largest column of the
    tridiagonal matrix so far, `unit` that of A, and `bar` is delta before its rotation.
    """

    x: Tree
    v: Tree
    v_before: Tree
    d: Tree
    d_before: Tree
    beta: jax.Array
    bar: jax.Array
    epsilon: jax.Array
    cosine: jax.Array
    sine: jax.Array
    left: jax.Array
    size: jax.Array
    unit: jax.Array
    active: jax.Array
    used: jax.Array


def _begin(first: Start, enough: jax.Array) -> _State:
    left, zeros = jnp.sqrt(first.rr), first.zeros()
    zero, one = jnp.zeros_like(left), jnp.ones_like(left)
    return _State(
        x=zeros,
        v=scale(divide(one, left), first.r),
        v_before=zeros,
        d=zeros,
        d_before=zeros,
        beta=zero,
        bar=zero,
        epsilon=zero,
        cosine=-one,
        sine=zero,
        left=left,
        size=zero,
        unit=one,
        active=(left > enough) & jnp.isfinite(left),
        used=jnp.int32(first.used),
    )


def _step(first: Start, precision: float, enough: jax.Array, state: _State) -> _State:
    """Make one iteration, or none if the state is final."""
    s = state
    Av = first.product(s.v)
    # Before the first iteration the unit is not known.
    unit = jnp.where(s.used == first.used, find_unit(Av), s.unit).astype(s.unit.dtype)
    w = add_scaled(scale(1 / unit, Av), -s.beta, s.v_before)
    alpha = vdot(s.v, w)
    w = add_scaled(w, -alpha, s.v)
    beta = jnp.sqrt(vdot(w, w))
    size = jnp.maximum(s.size, jnp.sqrt(s.beta**2 + alpha**2 + beta**2))

    delta = s.cosine * s.bar + s.sine * alpha
    diagonal = s.sine * s.bar - s.cosine * alpha
    gamma = jnp.sqrt(diagonal**2 + beta**2)
    cosine, sine = divide(diagonal, gamma), divide(beta, gamma)
    d = add_scaled(add_scaled(s.v, -delta, s.d), -s.epsilon, s.d_before)
    d = scale(divide(jnp.ones_like(gamma), gamma), d)
    x = add_scaled(s.x, cosine * s.left, d)
    # Without a new direction A is singular on the span.
    sound = s.active & (gamma > precision * size) & jnp.isfinite(gamma)
    sound &= jnp.isfinite(first.unit * (largest(x) / unit))
    left = sine * s.left
    after = _State(
        x=x,
        v=scale(divide(jnp.ones_like(beta), beta), w),
        v_before=s.v,
        d=d,
        d_before=s.d,
        beta=beta,
        bar=-s.cosine * beta,
        epsilon=s.sine * beta,
        cosine=cosine,
        sine=sine,
        left=left,
        size=size,
        unit=unit,
        active=left > enough,
        used=s.used,
    )
    kept = jax.tree.map(lambda new, old: jnp.where(sound, new, old), after, s)
    used = s.used + s.active.astype(s.used.dtype)
    return kept._replace(active=kept.active & sound, used=used)


serves.register(MINRES, lambda solver: System.SYMMETRIC)
