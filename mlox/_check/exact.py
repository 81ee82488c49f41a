"""The method of references: an adjoint solved as well as can be afforded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mlox._utils.tree import ravel, vdot
from mlox._utils.types import PyTree, Tree
from mlox.methods import Answer
from mlox.solvers import Info, MatVec, Solver, linear_solve


@dataclass(frozen=True)
class Exact:
    """Differentiate an answer by the implicit function theorem, assuming little.

    Unlike `mlox.Implicit` it multiplies by the transpose of dG/dy, also where that
    should be symmetric, and pairs by the gradient of the cost, which a loss with a
    `custom_vjp` allows.

    Attributes:
        solver: The solver.
    """

    solver: Solver

    def multiplier(
        self, answer: Answer, cotangent: Any, guess: Any | None = None
    ) -> tuple[Any, Info]:
        """Solve (dG/dy)^T lambda = cotangent."""
        pull = jax.vjp(answer.residual, answer.point)[1]
        return linear_solve(self.solver, lambda v: pull(v)[0], cotangent, guess)

    def pairing(
        self, cost: Callable[[Any], jax.Array], point: Any, multiplier: Any
    ) -> jax.Array:
        """Return <multiplier, d cost/dy>."""
        return vdot(multiplier, jax.grad(cost)(point))


@dataclass(frozen=True)
class PseudoInverse:
    """Multiply by the pseudo-inverse of a small matrix: also a singular one serves."""

    def __call__(
        self, matvec: MatVec, b: Tree, guess: Tree | None = None
    ) -> tuple[Tree, Info]:
        """Return the least-squares solution, and the number of products."""
        del guess
        flat, unravel = ravel(b)
        x = jnp.linalg.pinv(matrix_of(matvec, b)) @ flat
        return unravel(x), {"iterations": jnp.int32(flat.size)}


@dataclass(frozen=True)
class Downhill:
    """Solve a small symmetric system with the absolute values of its eigenvalues.

    A Newton step with them leads towards a minimum, also where the Hessian is
    indefinite (Dauphin et al., Identifying and attacking the saddle point problem in
    high-dimensional non-convex optimization, NeurIPS 2014).
    """

    def __call__(
        self, matvec: MatVec, b: Tree, guess: Tree | None = None
    ) -> tuple[Tree, Info]:
        """Return |A|^-1 b, and the number of products."""
        del guess
        flat, unravel = ravel(b)
        matrix = matrix_of(matvec, b)
        values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
        size = jnp.abs(values)
        regular = size > flat.size * jnp.finfo(flat.dtype).eps * jnp.max(size)
        inverse = jnp.where(regular, 1 / jnp.where(regular, size, 1), 0)
        x = vectors @ (inverse * (vectors.T @ flat))
        return unravel(x), {"iterations": jnp.int32(flat.size)}


def matrix_of(matvec: MatVec, like: PyTree) -> jax.Array:
    """Return the matrix of a linear map on pytrees, column by column."""
    flat, unravel = ravel(like)

    def column(unit: jax.Array) -> jax.Array:
        return ravel(matvec(unravel(unit)))[0]

    return jax.vmap(column, out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))
