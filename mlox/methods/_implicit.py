"""Implicit differentiation: the multiplier solves the adjoint system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from mlox._utils.describe import OFF, show_call
from mlox._utils.fields import (
    COUNT,
    COUNT_OR_ZERO,
    FLAG,
    FUNCTION,
    check,
    check_fields,
    optional,
)
from mlox.methods._base import Answer, exact_pairing, reach
from mlox.methods._draws import count_draws, drawn_products
from mlox.methods._symmetry import asymmetry
from mlox.solvers import (
    CG,
    GMRES,
    Dense,
    Identity,
    Info,
    Neumann,
    Nystrom,
    Solver,
    System,
    linear_solve,
    serves,
    takes_draws,
)


@dataclass(frozen=True, repr=False)
class Implicit:
    r"""Differentiate an answer by the implicit function theorem.

    At an answer y with G(y, x) = 0 the derivative is dy/dx = -(dG/dy)^{-1} dG/dx, and
    the upper's hypergradient

        dC/dx - <lambda, dG/dx>    with    (dG/dy)^T lambda = dC/dy.

    The matrix is never formed (except by `mlox.Dense`): the solver uses products with
    it, which are Hessian-vector products of the lower's cost. The iterations that led
    to the answer are not stored, so memory does not grow with them, and the derivative
    with respect to their start is zero.

    Attributes:
        solver: The solver of the linear system: a value such as `mlox.CG()`, or your
            own function (matvec, b, guess) -> (x, info). None selects conjugate
            gradients if the matrix is symmetric and positive definite at a minimum, and
            GMRES otherwise, each to a relative residual of ten machine epsilons in at
            most 100 products.
        warm_start: Whether the solver starts at the multiplier of the upper's last
            step, which the state then holds (see `mlox.MethodWithMemory`); the first
            one is zero. Where the system drifts slowly a tolerance is reached in fewer
            products, and a few iterations per step follow the solution. It costs one
            more vector like the answer for each upper, and of a Krylov solver one more
            product. ValueError for solvers that ignore a guess.
        refine: The number of Newton steps y <- y - (dG/dy)^{-1} G on the answer before
            it is differentiated, each one more solve. The error of a hypergradient at
            an unsolved answer, of first order in its distance, becomes one of second
            order if the solver reaches its tolerance, without damping. Parameters,
            loss, metrics and mutable state stay those of the actual answer; the
            reported residual, iterations and gap are those of the refined point. For
            lowers that see the same data in every step: with mini-batches a step solves
            for the noise of the last one, and a settled lower's hypergradient gets
            worse (an error of 0.4 became 1.0 at 50 of 2000 rows). An engine raises
            ValueError where it is not defined: without a linear system, for an answer
            that is projected, and for a problem with responsive lowers under
            `coupling="direct"`.
        draws: The number of last draws of the window over which the products go round:
            product i uses the batch and the PRNG key of the lower's step
            T - 1 - (i mod draws), at the same answer. With Q draws H_0, ..., H_(Q-1)

                Implicit(Neumann(Q, a), draws=Q)
                    lambda = a sum over q = 0..Q of prod_(i<q) (I - a H_i) v

            is stocBiO, and Implicit(Richardson(K, a), warm_start=True, draws=K), K
            steps lambda <- lambda + a (v - H_i lambda), is AmIGO. A product costs as
            much as with one batch, and one more evaluation of the residual, which
            products with one matrix share. The draws of a lower with data were trained
            on, so that they know its noise; a lower with `sample` and a key draws its
            batches anew. The derivative of such a hypergradient is as noisy as it is.
            ValueError for solvers that need one matrix, and with `refine`; and when an
            engine is built, for windows with fewer steps and for answers that are
            solved together with lowers of their own.

    References:
        Lorraine, Vicol and Duvenaud, Optimizing Millions of Hyperparameters by Implicit
        Differentiation, 2020; Rajeswaran et al., Meta-Learning with Implicit
        Gradients, 2019; Ji, Yang and Liang, Bilevel Optimization: Convergence Analysis
        and Enhanced Design, ICML 2021 (stocBiO); Arbel and Mairal, Amortized Implicit
        Differentiation for Stochastic Bilevel Optimization, ICLR 2022 (AmIGO).

    Example:
        >>> import mlox
        >>> mlox.Implicit(mlox.CG(iterations=5)) == mlox.Implicit(mlox.CG(iterations=5))
        True
        >>> stocbio = mlox.Implicit(mlox.Neumann(iterations=5, step=0.1), draws=5)
        >>> amigo = mlox.Implicit(mlox.Richardson(5, 0.1), warm_start=True, draws=5)
    """

    solver: Solver | None = None
    warm_start: bool = False
    refine: int = 0
    draws: int = field(default=1, metadata=OFF)

    def __post_init__(self) -> None:
        check_solver("Implicit", self.solver)
        check_fields(self, warm_start=FLAG, refine=COUNT_OR_ZERO, draws=COUNT)
        if self.warm_start and isinstance(
            self.solver, Dense | Identity | Neumann | Nystrom
        ):
            raise ValueError(
                f"Implicit: warm_start=True, but {self.solver} ignores where it is to "
                "start. Use a solver that does not, such as mlox.CG() or "
                "mlox.Richardson(), or leave warm_start out."
            )
        if self.draws > 1:
            self._check_draws()

    def _check_draws(self) -> None:
        """Raise ValueError unless several draws are defined for the other fields."""
        if self.solver is None or not takes_draws(self.solver):
            solver = self.solver or "the solver that None selects"
            raise ValueError(
                f"Implicit: draws={self.draws} gives each product a matrix of its own, "
                f"but {solver} needs one for all its iterations. Use mlox.Neumann() or "
                "mlox.Richardson(), or leave draws out."
            )
        if self.refine:
            raise ValueError(
                f"Implicit: refine={self.refine} takes Newton steps on the last batch, "
                f"but draws={self.draws} solves on several. Leave one of the two out."
            )

    def start(self, point: Any) -> Any | None:
        """Return the first multiplier, zero, with a warm start; else None."""
        return jax.tree.map(jnp.zeros_like, point) if self.warm_start else None

    def multiplier(
        self, answer: Answer, cotangent: Any, memory: Any | None = None
    ) -> tuple[Any, Any | None, Info]:
        """Solve (dG/dy)^T lambda = cotangent, from the memory if there is one."""
        solver = self.solver or _choose_solver(answer.system, cotangent)
        product = (
            transposed_product(answer)
            if self.draws == 1
            else drawn_products(answer, self.draws)
        )
        lam, info = linear_solve(
            solver, product, cotangent, memory, symmetric=answer.is_symmetric
        )
        if answer.by_rule and System.NONE < serves(solver) <= System.SYMMETRIC:
            info = {**info, "asymmetry": asymmetry(product, cotangent, lam)}
        return lam, lam if self.warm_start else None, info

    def pairing(
        self, cost: Callable[[Any], jax.Array], point: Any, multiplier: Any
    ) -> jax.Array:
        """Return <multiplier, d cost/dy>, exactly."""
        return exact_pairing(cost, point, multiplier)

    __repr__ = show_call


@reach.register
def _(method: Implicit) -> System:
    return System.GENERAL if method.solver is None else serves(method.solver)


@count_draws.register
def _(method: Implicit) -> int:
    return method.draws


def check_solver(method: str, solver: Any) -> None:
    """Raise TypeError unless a method is given a solver as a value, or None."""
    if isinstance(solver, type):
        name = solver.__name__
        raise TypeError(
            f"{method}: solver is the class {name}; expected a value. Write "
            f"mlox.{method}(mlox.{name}())."
        )
    hint = "A solver is a value such as mlox.CG(), or (matvec, b, guess) -> (x, info)."
    check(f"{method}: solver", solver, optional(FUNCTION), hint)


def transposed_product(answer: Answer) -> Callable[[Any], Any]:
    """Return v -> (dG/dy)^T v."""
    # Linearized once, outside the solver's loop: its products share the evaluation of
    # the residual.
    if answer.is_symmetric:
        # (dG/dy)^T = dG/dy. Forward over reverse is cheaper than reverse over reverse.
        return jax.linearize(answer.residual, answer.point)[1]
    pull = jax.vjp(answer.residual, answer.point)[1]
    return lambda vector: pull(vector)[0]


def _choose_solver(system: System, cotangent: Any) -> Solver:
    # Ten epsilons are what rounding leaves of a residual after some tens of products.
    dtype = jnp.result_type(*jax.tree.leaves(cotangent))
    tolerance = 10 * float(jnp.finfo(dtype).eps)
    if system is System.DEFINITE:
        return CG(iterations=100, tolerance=tolerance)
    return GMRES(iterations=100, tolerance=tolerance)
