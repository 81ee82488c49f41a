"""A randomized Nystrom sketch: the large eigenvalues of a matrix by few products."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mlox._utils.tree import (
    STANDARD_PROMOTION,
    add_scaled,
    epsilon,
    find_unit,
    norm,
    ravel,
    scale,
    vdot,
    widen,
)
from mlox._utils.types import Tree
from mlox.solvers._base import MatVec
from mlox.solvers._draw import draw_like, make_key
from mlox.solvers._iterate import divide

# A block of r vectors is a pytree whose leaves have a leading axis of r. All that is
# done with blocks is `_gram` and `_mix`, sums over entries and over vectors: no leaf is
# reshaped and no tall matrix factorized, so that blocks stay where the parameters are
# split over devices. Only matrices of r x r are factorized.


class Sketch(NamedTuple):
    """Eigenvalues and eigenvectors, `A ~ U diag(values) U^T`.

    Attributes:
        block: `B`, with `B B^T = U diag(squares) U^T`, in units of `A`.
        vectors: `V`, with `U = B V diag(squares)^(-1/2)`.
        squares: The eigenvalues of `B^T B`.
        values: Those of `A`, in units of `A`: `squares` less the shift, 0 or more.
        unit: A power of two of the size of `A`.
    """

    block: Tree
    vectors: jax.Array
    squares: jax.Array
    values: jax.Array
    unit: jax.Array

    def apply(self, weights: jax.Array, x: Tree) -> Tree:
        """Return `U diag(weights) U^T x`."""
        along = divide(weights, self.squares) * (self._dot(x) @ self.vectors)
        return self._combine(self.vectors @ along, x)

    def _dot(self, x: Tree) -> jax.Array:
        """Return `B^T x`."""
        return jax.vmap(vdot, (0, None))(self.block, x)

    def _combine(self, factors: jax.Array, like: Tree) -> Tree:
        """Return `B factors`."""
        mixed = _mix(self.block, factors[:, None])
        return jax.tree.map(lambda y, x: y[0].astype(x.dtype), mixed, like)


def count_unknowns(like: Tree) -> int:
    """Return the number of entries of a pytree."""
    return sum(leaf.size for leaf in jax.tree.leaves(like))


def sketch(product: MatVec, like: Tree, rank: int, seed: int) -> Sketch:
    """Return the sketch of a symmetric matrix, by `rank` products at once."""
    # With a basis Omega, the Nystrom approximation of A + nu I is B B^T,
    #
    #     Y = (A + nu I) Omega,    W = Omega^T Y,    B = Y W^(-1/2).
    #
    # W is singular to rounding where A is of lower rank, and indefinite where A is. The
    # shift nu makes it definite: rounding errors of Y, and the lowest eigenvalue. The
    # published factor is Cholesky's, B = Y L^-T, another square root of W^-1: it gives
    # the same B B^T, but fails where W is only almost definite. The eigenvalues of B^T
    # B are the squares of the singular values of B.
    omega = _draw_basis(like, rank, seed)
    Y = jax.vmap(product)(omega)
    unit = find_unit(Y)
    Y, omega = _widen(scale(1 / unit, Y)), _widen(omega)
    W = _gram(omega, Y)
    values, Q = jnp.linalg.eigh((W + W.T) / 2)
    if rank == count_unknowns(like):  # W is A in the basis, and its own approximation
        one = jnp.ones_like(values)
        return Sketch(_mix(omega, Q), jnp.diag(one), one, jnp.maximum(values, 0), unit)
    rounding = epsilon(like) * norm(Y)
    nu = rounding + jnp.maximum(0, -values[0])
    roots = jnp.sqrt(values + nu)
    B = _mix(add_scaled(Y, nu, omega), Q * divide(jnp.ones_like(roots), roots)[None])
    squares, V = jnp.linalg.eigh(_gram(B, B))
    return Sketch(B, V, squares, jnp.maximum(squares - nu, 0), unit)


def _draw_basis(like: Tree, rank: int, seed: int) -> Tree:
    """Return a random orthonormal block; the unit vectors if it is to hold them all."""
    size = count_unknowns(like)
    if rank == size:
        flat, unravel = ravel(like)
        return jax.vmap(unravel)(jnp.eye(size, dtype=flat.dtype))
    keys = jax.random.split(make_key(seed), rank)
    block = jax.vmap(lambda key: draw_like(key, _widen(like)))(keys)
    # Twice: where `rank` is near `size` the first leaves errors of the condition of
    # Gaussian matrices, squared.
    for _ in range(2):
        values, Q = jnp.linalg.eigh(_gram(block, block))
        block = _mix(block, Q / jnp.sqrt(values)[None])
    return jax.tree.map(lambda x, y: x.astype(y.dtype), block, like)


def _widen(block: Tree) -> Tree:
    return jax.tree.map(widen, block)


def _gram(X: Tree, Y: Tree) -> jax.Array:
    """Return `X^T Y` of two blocks."""
    return jax.vmap(jax.vmap(vdot, (None, 0)), (0, None))(X, Y)


def _mix(X: Tree, M: jax.Array) -> Tree:
    """Return `X M`, for a block and a matrix."""

    def mix(leaf: jax.Array) -> jax.Array:
        found = jnp.tensordot(M.T, leaf, axes=1, precision=lax.Precision.HIGHEST)
        return found.astype(leaf.dtype)

    with STANDARD_PROMOTION():
        return jax.tree.map(mix, X)
