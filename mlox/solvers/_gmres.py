"""Generalized minimal residuals."""

import dataclasses
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from mlox._utils.describe import show_call
from mlox._utils.tree import (
    STANDARD_PROMOTION,
    add_scaled,
    epsilon,
    find_unit,
    scale,
    vdot,
)
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
class GMRES:
    """Solve a general system by minimal residuals over Krylov spaces.

    Iterate k minimizes the norm of `b - (A + damping I) x` over the guess plus the
    span of `r, A r, ..., A^(k-1) r`, with `r` the first residual: for any regular `A`,
    symmetric or not, definite or not. The iteration stops at a residual of machine
    precision, after as many products as there are unknowns (without restart), and if
    the span no longer grows. For a singular `A` it returns the last iterate that is not
    dominated by rounding, whose residual is close to the smallest possible; `x` may be
    large without damping.

    The reported residual is that of the small least-squares problem and a bound of the
    rounding errors, and costs no product.

    Attributes:
        iterations: the largest number of products with `A` in all: one for a guess,
            one in each iteration, and none for a restart. It counts single products,
            also within a cycle between two restarts.
        tolerance: stop at a residual of `tolerance` times the norm of `b`.
        damping: added to the diagonal of `A`.
        restart: restart from the iterate after this many products, which limits the
            memory to `restart + 1` vectors like `b`. None: never restart, which takes
            `iterations + 1` vectors (or one more than there are unknowns, if fewer).
        unroll: whether to write the loop out, at its full length; None: on CPU, around
            a convolution.

    References:
        Saad and Schultz, GMRES: a generalized minimal residual algorithm for solving
        nonsymmetric linear systems, SIAM J. Sci. Stat. Comput., 1986.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlox.solvers import GMRES
        >>> A = jnp.array([[0.0, 1.0], [-2.0, 0.0]])
        >>> x, info = GMRES()(lambda x: A @ x, jnp.array([3.0, 4.0]))
        >>> print(jnp.round(x), info["residual"] < 1e-6)
        [-2.  3.] True
    """

    iterations: int = 50
    tolerance: float = 0.0
    damping: float = 0.0
    restart: int | None = None
    unroll: bool | None = None

    def __post_init__(self) -> None:
        check_solver(self)

    def __call__(
        self, matvec: MatVec, b: Tree, guess: Tree | None = None
    ) -> tuple[Tree, Info]:
        """Return the last iterate and its report, see `Solver`."""
        first = start(self, matvec, b, guess)
        budget = self.iterations - first.used
        unknowns = sum(leaf.size for leaf in jax.tree.leaves(first.r))
        length = min(self.restart or budget, budget, unknowns)
        norm, norm_b = jnp.sqrt(first.rr), jnp.sqrt(first.bb)
        enough = max(self.tolerance, epsilon(first.r)) * norm_b
        active = (norm > enough) & jnp.isfinite(norm)
        state = _State(first.zeros(), first.r, norm, active, jnp.int32(first.used))

        def cycle(state: _State) -> _State:
            left = self.iterations - state.used
            space = iterate(
                lambda space: _extend(first.product, left, state.norm, enough, space),
                _begin_space(state, length),
                length,
                lambda space: space.active,
                first.unroll,
            )
            return _correct(first, state, space, left, enough)

        if length > 0:
            cycles = 1 if self.restart is None else -(-budget // length)
            if cycles == 1:
                state = cycle(state)
            else:
                active = lambda state: state.active
                state = iterate(cycle, state, cycles, active, first.unroll)
        info = report(state.norm**2, first.bb, state.used)
        return first.finish(state.x), info

    __repr__ = show_call


class _State(NamedTuple):
    """The iterate between two restarts, its residual `r` and the norm of that."""

    x: Tree
    r: Tree
    norm: jax.Array
    active: jax.Array
    used: jax.Array


# Letters as in Saad and Schultz, but a basis of rows: V has k + 1 orthonormal rows, the
# first of them r / |r|, and H is the Hessenberg matrix of Arnoldi's process,
#
#     A V[:k]^T = V^T H,    so    b - A (x + |r| V[:k]^T y) = |r| V^T (e_1 - H y),
#
# whose norm is |r| |e_1 - H y|. Givens rotations of the product Q turn H into an upper
# triangle R over a row of zeros: with g = Q e_1 the minimizer is y = R^-1 g[:k], and
# the least norm |r| |g[k]|. Rows that are not reached yet are zero in V, and those of
# the identity in Q and R. Each column of H and R is in units of its own, of the size of
# A times that row of V, whose squares neither underflow nor overflow; so is y.


class _Space(NamedTuple):
    """A Krylov space of dimension `k`, and the least-squares problem on it.

    The leaves of `V` are [length + 1, ...], `Q` is [length + 1, length + 1], `RT`, the
    transpose of R, [length, length], and `units` [length].
    """

    V: Tree
    Q: jax.Array
    RT: jax.Array
    units: jax.Array
    k: jax.Array
    active: jax.Array
    used: jax.Array


def _begin_space(state: _State, length: int) -> _Space:
    """Return the space of dimension 0, with the normalized residual in its basis."""
    dtype = state.norm.dtype
    first = scale(divide(jnp.ones((), dtype), state.norm), state.r)
    return _Space(
        V=jax.tree.map(
            lambda leaf, row: _put(
                jnp.zeros((length + 1, *leaf.shape), leaf.dtype), row, 0
            ),
            state.r,
            first,
        ),
        Q=jnp.eye(length + 1, dtype=dtype),
        RT=jnp.eye(length, dtype=dtype),
        units=jnp.ones(length, dtype),
        k=jnp.int32(0),
        active=state.active,
        used=jnp.int32(0),
    )


def _extend(
    product: MatVec, left: jax.Array, norm: jax.Array, enough: jax.Array, space: _Space
) -> _Space:
    """Add one dimension, or none if the space is final."""
    # One step of Arnoldi's process. Classical Gram-Schmidt, twice, is as exact as the
    # modified form, and all in matrix products (Giraud et al., Numer. Math., 2005).
    V, Q, RT, units, k, active, used = space
    w = product(jax.tree.map(lambda rows: rows[k], V))
    unit = find_unit(w)
    w = scale(1 / unit, w)
    tiny = epsilon(V) * jnp.sqrt(vdot(w, w))
    h, w = _orthogonalize(V, w)
    again, w = _orthogonalize(V, w)
    below = jnp.sqrt(vdot(w, w))

    # One more rotation, of the rows k and k + 1. The earlier ones act on the new column
    # (h; |w|) of H through their product, instead of one after the other.
    column = _dot(Q, _put(h + again, below, k + 1))
    corner = lax.dynamic_slice_in_dim(column, k, 2)
    diagonal = jnp.sqrt(vdot(corner, corner))
    # Without a new direction and a new row, A is singular on the space.
    sound = active & (diagonal > tiny) & jnp.isfinite(diagonal)
    cosine, sine = divide(corner, diagonal)
    rotation = jnp.array([[cosine, sine], [-sine, cosine]])
    rows = _dot(rotation, lax.dynamic_slice_in_dim(Q, k, 2))
    column = jnp.where(jnp.arange(len(RT), dtype=k.dtype) < k, column[:-1], 0)

    w = scale(jnp.where(sound, divide(jnp.ones_like(below), below), 0), w)
    V = jax.tree.map(lambda rows, row: _put(rows, row, k + 1), V, w)
    Q = jnp.where(sound, lax.dynamic_update_slice_in_dim(Q, rows, k, 0), Q)
    RT = jnp.where(sound, _put(RT, _put(column, diagonal, k), k), RT)
    units = jnp.where(sound, _put(units, unit, k), units)
    k, used = k + sound.astype(k.dtype), used + active.astype(used.dtype)
    # |g[k]| = |Q[k, 0]| is the residual of the least-squares problem.
    active = sound & (used < left) & (norm * jnp.abs(Q[k, 0]) > enough)
    return _Space(V, Q, RT, units, k, active, used)


def _correct(
    first: Start, state: _State, space: _Space, left: jax.Array, enough: jax.Array
) -> _State:
    """Add a minimizer over the space to the iterate."""
    # One solve gives the minimizer y_j over the first j dimensions for every j, since
    # the leading blocks of an inverse triangle are the inverses of its leading blocks:
    #
    #     y_j = sum over i < j of R^-1[:, i] g[i],    with the residual Q^T (0, g[j:]).
    #
    # Rounding adds about eps |R| |y| to the residual. On a singular A the last y may be
    # huge and nothing but rounding: so j is the largest whose sum of both is small.
    V, Q, RT, units, k, _, used = space
    index = jnp.arange(len(Q), dtype=k.dtype)
    g = jnp.where(index <= k, Q[:, 0], 0)
    # From here on R and y are in one unit, of the size of A.
    reached = index[:-1, None] < k
    unit_A = jnp.max(jnp.where(reached, units[:, None], 0))
    units = jnp.where(reached, divide(units[:, None], unit_A), 1)
    identity = jnp.eye(len(RT), dtype=RT.dtype)
    inverse = solve_triangular(RT, identity, trans="T", lower=True)
    solutions = jnp.cumsum(jnp.pad(inverse * g[None, :-1], ((0, 0), (1, 0))), axis=1)
    solutions = solutions / units
    size = jnp.sum(jnp.where(reached, RT * units, 0) ** 2)
    rounding = epsilon(V) ** 2 * size * jnp.sum(solutions**2, axis=0)
    errors = jnp.cumsum(g[::-1] ** 2)[::-1] + rounding

    # All of it is in units of |r|.
    unit = jnp.where(state.active, state.norm, 0)
    changes = unit * divide(solutions, unit_A)
    largest = first.unit * jnp.max(jnp.abs(changes), axis=0)
    finite = jnp.isfinite(errors) & jnp.isfinite(largest)
    errors = jnp.where((index <= k) & finite, errors, jnp.inf)
    j = jnp.max(jnp.where(errors <= 4 * jnp.min(errors), index, 0))

    norm = jnp.where(state.active, unit * jnp.sqrt(errors[j]), state.norm)
    return _State(
        x=add_scaled(state.x, 1.0, _combine(changes[:, j], V)),
        r=_combine(unit * _dot(jnp.where(index < j, 0, g), Q), V),
        norm=norm,
        active=(j > 0) & (norm > enough) & (used < left),
        used=state.used + used,
    )


def _orthogonalize(V: Tree, w: Tree) -> tuple[jax.Array, Tree]:
    """Return the components of `w` along the rows of `V`, and the rest of it."""

    def components(rows: jax.Array, leaf: jax.Array) -> jax.Array:
        return jax.vmap(vdot, (0, None))(rows, leaf)

    with STANDARD_PROMOTION():
        h = jax.tree.reduce(operator.add, jax.tree.map(components, V, w))
    return h, add_scaled(w, -1.0, _combine(h, V))


def _combine(weights: jax.Array, V: Tree) -> Tree:
    """Return the sum of the rows of `V` with these weights."""

    def combine(rows: jax.Array) -> jax.Array:
        return jnp.tensordot(
            weights, rows[: len(weights)], 1, precision=lax.Precision.HIGHEST
        ).astype(rows.dtype)

    with STANDARD_PROMOTION():
        return jax.tree.map(combine, V)


def _put(rows: jax.Array, row: jax.Array, index: jax.Array | int) -> jax.Array:
    """Return `rows` with one replaced: a slice, where `.at[]` would be a scatter."""
    return lax.dynamic_update_index_in_dim(rows, row.astype(rows.dtype), index, 0)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, precision=lax.Precision.HIGHEST)
