"""SAMA: an identity Hessian, and the Jacobian of the real optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from mlox._utils.describe import show_call
from mlox._utils.fields import POSITIVE, check_fields, optional
from mlox.methods._base import Answer, exact_pairing, follows_steps
from mlox.methods._finite_difference import central_difference, takes_difference
from mlox.solvers import Info


@dataclass(frozen=True, repr=False)
class SAMA:
    r"""Differentiate an answer through one step of its real optimizer.

    With u(g) the optimizer's update for a gradient g, the multiplier is
    lambda = -(du/dg)^T v, by `jax.vjp` of the transformation's own update at the
    current parameters, gradient and optimizer state: bias correction, weight decay,
    clipping and schedules are right by construction. The Hessian is omitted. For SGD
    this is the learning rate times v. At a zero gradient, where the square root of Adam
    has no derivative, that of a tiny gradient is used. The gradients of parameters that
    `meta_trainable` leaves out count where the optimizer takes a norm, as constants,
    and a projection (`project`) belongs to the update. The lowers of the problem itself
    are fixed (direct coupling).

    Attributes:
        epsilon: None for the exact cross derivative; a positive number for a central
            difference of that length, as in `mlox.FiniteDifference` and the paper.

    References:
        Choe et al., Making Scalable Meta Learning Practical, NeurIPS 2023.

    Example:
        >>> import mlox
        >>> mlox.SAMA()
        SAMA()
    """

    epsilon: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, epsilon=optional(POSITIVE))

    def start(self, point: Any) -> None:
        """Return None: there is no memory."""

    def multiplier(
        self, answer: Answer, cotangent: Any, memory: Any | None = None
    ) -> tuple[Any, Any | None, Info]:
        """Return -(du/dg)^T cotangent."""
        # One step from the present answer: theta' = theta + u(g(theta_k)), so that
        # dtheta'/dtheta_k = du/dg dg/dtheta_k. With lambda = -(du/dg)^T v the pairing
        # <lambda, g> has minus that derivative, transposed and applied to v.
        pulled = answer.pull_update(cotangent)
        return jax.tree.map(lambda x: -x, pulled), memory, {}

    def pairing(
        self, cost: Callable[[Any], jax.Array], point: Any, multiplier: Any
    ) -> jax.Array:
        """Return <multiplier, d cost/dy>, exactly or by a central difference."""
        if self.epsilon is None:
            return exact_pairing(cost, point, multiplier)
        return central_difference(cost, point, multiplier, self.epsilon)

    __repr__ = show_call


follows_steps.register(SAMA, lambda method: True)


@takes_difference.register
def _(method: SAMA) -> bool:
    return method.epsilon is not None
