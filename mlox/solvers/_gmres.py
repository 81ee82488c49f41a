"""Generalized minimal residuals."""

import dataclasses
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from mlox._utils.convolutions import unrolls
from mlox._utils.fields import COUNT, NOT_NEGATIVE, check_fields, optional
from mlox._utils.tree import add_scaled, epsilon, vdot
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec
from mlox.solvers._iterate import UNROLL, damped, divide, iterate, report, start


@dataclasses.dataclass(frozen=True)
class GMRES:
    """Solve a general system by minimal residuals over Krylov spaces.

    Iterate k minimizes the norm of `b - (A + damping I) x` over the guess plus the
    span of `r, A r, ..., A^(k-1) r`, with `r` the first residual: for any regular `A`,
    symmetric or not, definite or not. It stops by itself at a residual of machine
    precision, after as many products as there are unknowns (without restart), and
    where the span no longer grows. On a singular `A` it takes the last iterate that is
    not mere rounding, whose residual is about the least there is; but `x` may be large
    unless damped.

    The residual that is reported is that of the small least-squares problem and a bound
    of the rounding errors, and costs no product.

    Attributes:
        iterations: the largest number of products with `A` in all: one for a guess,
            one in each iteration, and none for a restart. It counts single products,
            also within a cycle between two restarts.
        tolerance: stop when the norm of the residual has fallen to `tolerance` times
            that of `b`.
        damping: added to the diagonal of `A`.
        restart: start anew from the iterate after so many products, which bounds the
            memory: `restart + 1` vectors like `b` are kept. None: never, with
            `iterations + 1` vectors (or one more than there are unknowns, if fewer).
        unroll: write the loop out, at its full length. None: on CPU if a product with
            `A` holds a convolution (which XLA runs 11 to 30 times slower in a loop).

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
        check_fields(
            self,
            iterations=COUNT,
            tolerance=NOT_NEGATIVE,
            damping=NOT_NEGATIVE,
            restart=optional(COUNT),
            unroll=UNROLL,
        )

    def __call__(
        self, matvec: MatVec, b: Tree, guess: Tree | None = None
    ) -> tuple[Tree, Info]:
        """Return the last iterate and its report, see `Solver`."""
        product = damped(matvec, self.damping)
        x, r, rr, bb, used = start(product, b, guess)
        budget = self.iterations - used
        unknowns = sum(leaf.size for leaf in jax.tree.leaves(r))
        length = min(self.restart or budget, budget, unknowns)
        if length == 0:
            return x, report(rr, bb, used)
        cycles = 1 if self.restart is None else -(-budget // length)
        enough = max(self.tolerance, epsilon(r)) * jnp.sqrt(bb)
        unroll = unrolls(matvec, r) if self.unroll is None else self.unroll

        def cycle(state: _State) -> _State:
            left = self.iterations - state.used
            space = iterate(
                lambda space: _extend(product, left, state.norm, enough, space),
                _first(state, length),
                length,
                lambda space: space.active,
                unroll,
            )
            return _correct(state, space, left, enough)

        norm = jnp.sqrt(rr)
        active = (norm > enough) & jnp.isfinite(norm)
        state = _State(x, r, norm, active, jnp.int32(used))
        if cycles == 1:
            state = cycle(state)
        else:
            state = iterate(cycle, state, cycles, lambda state: state.active, unroll)
        return state.x, report(state.norm**2, bb, state.used)


class _State(NamedTuple):
    """The iterate between two restarts, its residual `r` and the norm of that."""

    x: Tree
    r: Tree
    norm: jax.Array
    active: jax.Array
    used: jax.Array


class _Space(NamedTuple):
    """A Krylov space of dimension `k`, and the least-squares problem on it.

    With V the first k rows of `basis` (leaves [length + 1, ...], orthonormal, zero from
    row k + 1 on) and H the Hessenberg matrix, A V^T = basis^T H. `Q` [length + 1,
    length + 1] is the product of the rotations that bring H to the transpose of the
    triangle `R` [length, length], which is the identity from row k on.
    """

    basis: Tree
    Q: jax.Array
    R: jax.Array
    k: jax.Array
    active: jax.Array
    used: jax.Array


def _first(state: _State, length: int) -> _Space:
    """Return the space of dimension 0, with the normalized residual in its basis."""
    scale = divide(jnp.ones_like(state.norm), state.norm)

    def rows(leaf: jax.Array) -> jax.Array:
        empty = jnp.zeros((length + 1, *leaf.shape), leaf.dtype)
        return _put(empty, scale * leaf, 0)

    return _Space(
        basis=jax.tree.map(rows, state.r),
        Q=jnp.eye(length + 1, dtype=scale.dtype),
        R=jnp.eye(length, dtype=scale.dtype),
        k=jnp.int32(0),
        active=state.active,
        used=jnp.int32(0),
    )


def _extend(
    product: MatVec, left: jax.Array, norm: jax.Array, enough: jax.Array, space: _Space
) -> _Space:
    """Add one dimension, or none if the space is final.

    One step of Arnoldi's process, with classical Gram-Schmidt done twice (as exact as
    the modified form and all in matrix products), then one Givens rotation. The earlier
    rotations act on the new column h through their product Q, instead of one after the
    other. The residual of the least-squares problem is norm * |Q[k, 0]|.
    """
    basis, Q, R, k, active, used = space
    w = product(jax.tree.map(lambda rows: rows[k], basis))
    tiny = epsilon(basis) * jnp.sqrt(vdot(w, w))
    h, w = _orthogonalize(basis, w)
    again, w = _orthogonalize(basis, w)
    below = jnp.sqrt(vdot(w, w))
    column = _dot(Q, _put(h + again, below, k + 1))
    corner = lax.dynamic_slice_in_dim(column, k, 2)
    diagonal = jnp.sqrt(vdot(corner, corner))
    # No new direction and no new row: A is singular on the space.
    sound = active & (diagonal > tiny) & jnp.isfinite(diagonal)

    cosine, sine = divide(corner, diagonal)
    rotation = jnp.array([[cosine, sine], [-sine, cosine]])
    rows = _dot(rotation, lax.dynamic_slice_in_dim(Q, k, 2))
    column = jnp.where(jnp.arange(len(R)) < k, column[:-1], 0)
    scale = jnp.where(sound, divide(jnp.ones_like(below), below), 0)
    basis = jax.tree.map(lambda rows, leaf: _put(rows, scale * leaf, k + 1), basis, w)
    Q = jnp.where(sound, lax.dynamic_update_slice_in_dim(Q, rows, k, 0), Q)
    R = jnp.where(sound, _put(R, _put(column, diagonal, k), k), R)
    k, used = k + sound, used + active
    active = sound & (used < left) & (norm * jnp.abs(Q[k, 0]) > enough)
    return _Space(basis, Q, R, k, active, used)


def _correct(
    state: _State, space: _Space, left: jax.Array, enough: jax.Array
) -> _State:
    """Add a minimizer over the space to the iterate.

    With g = Q[:, 0], all in units of the norm, the minimizer y over the first j
    dimensions solves R.T[:j, :j] y = g[:j], and its residual is Q^T (0, g[j:]) in the
    basis: neither takes a product. One solve gives y for every j, since the leading
    blocks of an inverse triangle are the inverses of its leading blocks. Rounding adds
    about eps |R| |y| to the residual. On a singular A the last y may be huge and
    nothing but rounding; so the largest j is taken whose sum of both is small.
    """
    basis, Q, R, k, _, used = space
    index = jnp.arange(len(Q))
    g = jnp.where(index <= k, Q[:, 0], 0)
    inverse = solve_triangular(R, jnp.eye(len(R), dtype=R.dtype), trans="T", lower=True)
    solutions = jnp.cumsum(jnp.pad(inverse * g[None, :-1], ((0, 0), (1, 0))), axis=1)
    size = jnp.sum(jnp.where(index[:-1, None] < k, R, 0) ** 2)
    rounding = epsilon(basis) ** 2 * size * jnp.sum(solutions**2, axis=0)
    errors = jnp.cumsum(g[::-1] ** 2)[::-1] + rounding
    errors = jnp.where((index <= k) & jnp.isfinite(errors), errors, jnp.inf)
    j = jnp.max(jnp.where(errors <= 4 * jnp.min(errors), index, 0))
    unit = jnp.where(state.active, state.norm, 0)
    norm = jnp.where(state.active, unit * jnp.sqrt(errors[j]), state.norm)
    return _State(
        x=add_scaled(state.x, unit, _combine(solutions[:, j], basis)),
        r=_combine(unit * _dot(jnp.where(index < j, 0, g), Q), basis),
        norm=norm,
        active=(j > 0) & (norm > enough) & (used < left),
        used=state.used + used,
    )


def _orthogonalize(basis: Tree, w: Tree) -> tuple[jax.Array, Tree]:
    """Return the components of `w` along the rows of `basis`, and the rest of it."""

    def components(rows: jax.Array, leaf: jax.Array) -> jax.Array:
        return jax.vmap(vdot, (0, None))(rows, leaf)

    h = jax.tree.reduce(operator.add, jax.tree.map(components, basis, w))
    return h, add_scaled(w, -1.0, _combine(h, basis))


def _combine(weights: jax.Array, basis: Tree) -> Tree:
    """Return the sum of the rows of `basis` with these weights."""
    return jax.tree.map(
        lambda rows: jnp.tensordot(
            weights, rows[: len(weights)], 1, precision=lax.Precision.HIGHEST
        ).astype(rows.dtype),
        basis,
    )


def _put(rows: jax.Array, row: jax.Array, index: jax.Array | int) -> jax.Array:
    """Return `rows` with one replaced: a slice, where `.at[]` would be a scatter."""
    return lax.dynamic_update_index_in_dim(rows, row.astype(rows.dtype), index, 0)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, precision=lax.Precision.HIGHEST)
