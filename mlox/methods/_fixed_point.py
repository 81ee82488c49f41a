"""The fixed point of the optimizer's own step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mlox._utils.convolutions import should_unroll
from mlox._utils.describe import show_call
from mlox._utils.fields import COUNT_OR_ZERO, check_fields
from mlox._utils.tree import find_unit, scale
from mlox.methods._base import Answer, exact_pairing, follows_steps
from mlox.solvers import Info, sum_powers


@dataclass(frozen=True, repr=False)
class FixedPoint:
    r"""Differentiate an answer as the fixed point of its optimizer's own step.

    A lower at rest is a fixed point y = T(y) of T(y) = y + u(g(y), y), the next step of
    its optimizer, whose state is held fixed: g is the gradient of the lower's cost,
    and u the update. The derivative of a fixed point gives, with the cotangent v,

        lambda = -(du/dg)^T w,    w = v + (dT/dy)^T w,

    by K iterations w <- v + (dT/dy)^T w from w = v. All is taken by `jax.vjp` of the
    transformation's own update at the present parameters, gradient and state, so that
    the optimizer preconditions the system: Adam's step sizes, clipping and schedules.
    What the update adds to the gradient, such as weight decay, belongs to the condition
    of rest, which implicit methods do not know: where y + u = y but g(y) is not zero,
    this is the method that is right.

    With K = 0 it is `mlox.SAMA()`, and with `optax.sgd(a)` it is
    `mlox.Implicit(mlox.Neumann(K, a))`, both to the last bit. It is exact as K grows if
    the lower rests and the step contracts near it, each eigenvalue of dT/dy within the
    unit circle: then the optimizer would converge, too, if its state stood still. If
    not, the terms grow, and the reported residual says so.

    The step of a momentum with its state held fixed is one of plain gradient descent.
    At a zero gradient, where the square root of Adam has no derivative, that of a tiny
    gradient is used; an Adam whose second moments have vanished takes steps too long
    for the iteration to converge. The lowers of the problem itself are fixed (direct
    coupling). Derivatives with respect to `hyperparams` of the optimizer are not taken.

    It costs K Hessian-vector products and K pulls through the update, beside the
    gradient of the lower and one mixed derivative, and the memory of two vectors like
    y, for any K and any number of steps of the lower.

    The report has "residual", the norm of the last term (dT/dy)^T ... v relative to v,
    which is what is left of the equation of w one iteration before the last, and
    "iterations".

    Attributes:
        iterations: The number K of iterations.

    References:
        Bai, Koltun and Kolter, Deep Equilibrium Models, 2019; Grazzi et al., On the
        Iteration Complexity of Hypergradient Computation, 2020.

    Example:
        The lower's decay is part of its optimizer, so that it rests where
        (y - x) + y / 2 = 0, at y = 2/3 x:

        >>> import jax.numpy as jnp, mlox, optax
        >>> x = mlox.Problem.create(
        ...     name="x", params=jnp.ones(()), tx=optax.sgd(0.1),
        ...     loss_fn=lambda params, batch, ctx: ctx.y.params)
        >>> y = mlox.Problem.create(
        ...     name="y", params=jnp.array(2 / 3), method=mlox.FixedPoint(50),
        ...     tx=optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.4)),
        ...     loss_fn=lambda params, batch, ctx: (params - ctx.x.params) ** 2 / 2)
        >>> engine = mlox.Engine([x, y], {"x": ["y"]}, {"y": ["x"]})
        >>> _, slope = engine.hypergradient(engine.init(), {"x": None, "y": None}, "x")
        >>> print(round(float(slope), 4))
        0.6667
    """

    iterations: int = 10

    def __post_init__(self) -> None:
        check_fields(self, iterations=COUNT_OR_ZERO)

    def start(self, point: Any) -> None:
        """Return None: there is no memory."""

    def multiplier(
        self, answer: Answer, cotangent: Any, memory: Any | None = None
    ) -> tuple[Any, Any | None, Info]:
        """Return -(du/dg)^T w, for w after K iterations."""
        if answer.pull_step is None:
            raise ValueError(
                "the answer has no step of one optimizer (Answer.pull_step is None). "
                "Use mlox.Implicit()."
            )
        # w after K iterations is the sum of (dT/dy)^T to the powers 0 to K, applied to
        # v. A linear map that is linearized leaves what does not depend on its argument
        # outside of the loop: gradient, update, and the linearization of both.
        zeros = jax.tree.map(jnp.zeros_like, cotangent)
        _, advance = jax.linearize(answer.pull_step, zeros)
        unit = find_unit(cotangent)
        w, info = sum_powers(
            lambda i, term: advance(term),
            scale(1 / unit, cotangent),
            self.iterations,
            should_unroll(advance, cotangent),
        )
        return scale(-unit, answer.pull_update(w)), memory, info

    def pairing(
        self, cost: Callable[[Any], jax.Array], point: Any, multiplier: Any
    ) -> jax.Array:
        """Return <multiplier, d cost/dy>, exactly."""
        return exact_pairing(cost, point, multiplier)

    __repr__ = show_call


follows_steps.register(FixedPoint, lambda method: True)
