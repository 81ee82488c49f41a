"""Gauss-Newton: an adjoint system without the curvature of the outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from mlox._utils.describe import show_call
from mlox.methods._base import Answer, exact_pairing, reach
from mlox.methods._implicit import Implicit, check_solver
from mlox.solvers import Info, Solver, System, serves


@dataclass(frozen=True, repr=False)
class GaussNewton:
    r"""Differentiate an answer with the Gauss-Newton matrix as its Hessian.

    For a loss in parts, C = l(f(theta)) by `mlox.Composed`, the multiplier solves

        (J^T H J) lambda = dF/dtheta    with    J = df/dtheta,  H = d^2 l/dz^2.

    The Hessian has the term sum_i dl/dz_i d^2 f_i/dtheta^2 besides, which is left out.
    What remains is positive semidefinite wherever l is convex in the outputs (squares,
    softmax cross-entropy), also far from a minimum, where the Hessian is indefinite and
    `mlox.CG` fails. A product takes one forward and one backward derivative of f: 0.7
    of the operations of one with the Hessian (a tanh network of three layers). The
    hypergradient is exact where f is linear or dl/dz is zero, as for a network that
    fits its data, and otherwise as wrong as the omitted term. The pairing is exact.

    With fewer outputs than parameters the matrix is singular: give the solver a
    damping, or the loss a penalty, whose Hessian the matrix holds if the outputs
    return the parameters, too.

    An engine raises ValueError if the loss is not composed, and for a problem whose own
    lowers respond in its stationarity condition. A loss with a `jax.custom_vjp` is a
    TypeError, as products need forward mode.

    Attributes:
        solver: The solver of the linear system, as in `mlox.Implicit`. None selects
            conjugate gradients, to ten machine epsilons in at most 100 products.

    References:
        Schraudolph, Fast Curvature Matrix-Vector Products for Second-Order Gradient
        Descent, Neural Computation 2002; Martens, Deep learning via Hessian-free
        optimization, ICML 2010.

    Example:
        >>> import jax.numpy as jnp, mlox, optax
        >>> target = mlox.Problem.create(
        ...     name="target", params=jnp.float32(4.0), tx=optax.sgd(0.1),
        ...     loss_fn=lambda params, batch, ctx: ctx.fit.params)
        >>> fit = mlox.Problem.create(
        ...     name="fit", params=jnp.float32(2.0), tx=optax.sgd(0.1),
        ...     loss_fn=mlox.Composed(
        ...         lambda params, batch, ctx: params**2,
        ...         lambda z, batch, ctx: 0.5 * (z - ctx.target.params) ** 2),
        ...     method=mlox.GaussNewton(mlox.CG(1)))
        >>> engine = mlox.Engine(
        ...     [target, fit], {"target": ["fit"]}, {"fit": ["target"]})
        >>> _, gradient = engine.hypergradient(
        ...     engine.init(), {"target": None, "fit": None}, "target")
        >>> print(gradient)
        0.25
    """

    solver: Solver | None = None

    def __post_init__(self) -> None:
        check_solver("GaussNewton", self.solver)

    def start(self, point: Any) -> None:
        """Return None: there is no memory."""

    def multiplier(
        self, answer: Answer, cotangent: Any, memory: Any | None = None
    ) -> tuple[Any, Any | None, Info]:
        """Solve (J^T H J) lambda = cotangent."""
        if answer.linearized is None:
            raise ValueError(
                "GaussNewton got an answer without a linearized residual; expected one "
                "of a loss in parts. Use mlox.Composed(outputs, loss), or Implicit()."
            )
        system = answer._replace(
            residual=answer.linearized, system=System.DEFINITE, by_rule=False
        )
        lam, _, info = Implicit(self.solver).multiplier(system, cotangent)
        return lam, memory, info

    def pairing(
        self, cost: Callable[[Any], jax.Array], point: Any, multiplier: Any
    ) -> jax.Array:
        """Return <multiplier, d cost/dy>, exactly."""
        return exact_pairing(cost, point, multiplier)

    __repr__ = show_call


@reach.register
def _(method: GaussNewton) -> System:
    served = System.DEFINITE if method.solver is None else serves(method.solver)
    return min(served, System.DEFINITE)
