"""Implicit differentiation: the multiplier solves the adjoint system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mlox.methods._base import Answer, reach
from mlox.methods._exact import exact_pairing
from mlox.solvers import CG, GMRES, Info, Solver, System, linear_solve, serves


@dataclass(frozen=True)
class Implicit:
    r"""Differentiate an answer by the implicit function theorem.

    At an answer y with G(y, x) = 0 the derivative is dy/dx = -(dG/dy)^{-1} dG/dx, and
    the upper's hypergradient

        dC/dx - <lambda, dG/dx>    with    (dG/dy)^T lambda = dC/dy.

    The matrix is never formed (but by `mlox.Dense`): the solver sees products with it,
    which are Hessian-vector products of the lower's cost. Nothing is kept of the
    iterations that led to the answer, so memory does not grow with them, and the
    derivative with respect to where they started is zero.

    Attributes:
        solver: How the linear system is solved: a value such as `mlox.CG()`, or a
            function (matvec, b, guess) -> (x, info) of your own. None picks conjugate
            gradients where the matrix is symmetric and positive definite at a minimum,
            else GMRES, each to a relative residual of ten machine epsilons in at most
            100 products.

    References:
        Lorraine, Vicol and Duvenaud, Optimizing Millions of Hyperparameters by Implicit
        Differentiation, 2020; Rajeswaran et al., Meta-Learning with Implicit
        Gradients, 2019.

    Example:
        >>> import mlox
        >>> mlox.Implicit(mlox.CG(iterations=5)) == mlox.Implicit(mlox.CG(iterations=5))
        True
    """

    solver: Solver | None = None

    def __post_init__(self) -> None:
        if self.solver is not None and not callable(self.solver):
            raise TypeError(
                f"Implicit(solver={self.solver!r}): expected a solver such as "
                "mlox.CG(iterations=10), or a function (matvec, b, guess) -> (x, info)."
            )
        if isinstance(self.solver, type):
            raise TypeError(
                f"Implicit got the class {self.solver.__name__}; expected a value of "
                f"it. Write Implicit({self.solver.__name__}())."
            )

    def multiplier(
        self, answer: Answer, cotangent: Any, guess: Any | None = None
    ) -> tuple[Any, Info]:
        """Solve (dG/dy)^T lambda = cotangent."""
        solver = self.solver or _fitting(answer.system, cotangent)
        symmetric = answer.system <= System.SYMMETRIC
        product = _product(answer, symmetric)
        return linear_solve(solver, product, cotangent, guess, symmetric=symmetric)

    def pairing(
        self, cost: Callable[[Any], jax.Array], point: Any, multiplier: Any
    ) -> jax.Array:
        """Return <multiplier, d cost/dy>, exactly."""
        return exact_pairing(cost, point, multiplier)


@reach.register
def _(method: Implicit) -> System:
    return System.GENERAL if method.solver is None else serves(method.solver)


def _product(answer: Answer, symmetric: bool) -> Callable[[Any], Any]:
    """Linearize once; the solver's products then share the residual's own cost."""
    if symmetric:
        # Forward over reverse: cheaper than reverse over reverse, and the same matrix.
        return jax.linearize(answer.residual, answer.point)[1]
    pull = jax.vjp(answer.residual, answer.point)[1]
    return lambda vector: pull(vector)[0]


def _fitting(system: System, cotangent: Any) -> Solver:
    dtype = jnp.result_type(*jax.tree.leaves(cotangent))
    tolerance = 10 * float(jnp.finfo(dtype).eps)
    if system is System.DEFINITE:
        return CG(iterations=100, tolerance=tolerance)
    return GMRES(iterations=100, tolerance=tolerance)
