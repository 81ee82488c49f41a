"""The finite-difference method of DARTS."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlox._utils.describe import show_call
from mlox._utils.fields import POSITIVE, check_fields
from mlox._utils.tree import STANDARD_PROMOTION, add_scaled, find_unit, scale, widen
from mlox.methods._base import Answer
from mlox.solvers import Info


@dataclass(frozen=True, repr=False)
class FiniteDifference:
    r"""Differentiate an answer with an identity Hessian and a central difference.

    The multiplier is lambda = v = dC_k/dtheta, and the pairing

        <lambda, dC/dtheta> = [C(theta + e lambda) - C(theta - e lambda)] / 2e

    with e = epsilon / ||lambda||: two gradients of the lower's cost, and no second
    derivative. The lowers of the problem itself are fixed (direct coupling). As the
    Hessian and the step size are omitted, the scale of the result relative to the
    direct gradient is arbitrary; only its direction is meaningful.

    Both costs are computed in float32 or wider, whatever the precision of parameters,
    data and `mlox.MixedPrecision`: a perturbation of half precision is lost in
    rounding. What a loss casts to half precision itself stays, and needs an epsilon of
    about a twentieth of the norm of the parameters.

    Attributes:
        epsilon: The length of the perturbation of all parameters, in their units.

    References:
        Liu, Simonyan and Yang, DARTS: Differentiable Architecture Search, 2019, eq. 8.

    Example:
        >>> import mlox
        >>> mlox.FiniteDifference(epsilon=0.001)
        FiniteDifference(epsilon=0.001)
    """

    epsilon: float = 0.01

    def __post_init__(self) -> None:
        check_fields(self, epsilon=POSITIVE)

    def start(self, point: Any) -> None:
        """Return None: there is no memory."""

    def multiplier(
        self, answer: Answer, cotangent: Any, memory: Any | None = None
    ) -> tuple[Any, Any | None, Info]:
        """Return the cotangent: the identity in place of the inverse Hessian."""
        del answer
        return cotangent, memory, {}

    def pairing(
        self, cost: Callable[[Any], jax.Array], point: Any, multiplier: Any
    ) -> jax.Array:
        """Return the central difference of the cost along the multiplier."""
        return central_difference(cost, point, multiplier, self.epsilon)

    __repr__ = show_call


@functools.singledispatch
def takes_difference(method: object) -> bool:
    """Return whether the pairing of a method is a difference of two costs."""
    del method
    return False


@takes_difference.register
def _(method: FiniteDifference) -> bool:
    del method
    return True


def central_difference(
    cost: Callable[[Any], jax.Array], point: Any, direction: Any, epsilon: float
) -> jax.Array:
    """Return <direction, d cost/dy> by two evaluations, 0 for a zero direction."""
    # With d the direction and e = epsilon / ||d||,
    #
    #     [C(y + e d) - C(y - e d)] / 2e = <d, dC/dy> + e^2/6 d^3C/dy^3 [d, d, d] + ...,
    #
    # and rounding adds about eps |C| / e. The perturbation has the length epsilon,
    # however long d is: the relative error does not depend on the scale of the upper's
    # loss. In half precision the perturbation would be lost in the rounding of y.
    point, direction = (jax.tree.map(widen, tree) for tree in (point, direction))
    unit = find_unit(direction)
    direction = scale(1 / unit, direction)
    with STANDARD_PROMOTION():
        norm = optax.tree.norm(direction)
    step = epsilon / jnp.where(norm > 0, norm, 1)
    with STANDARD_PROMOTION():  # a loss may close over data in half precision
        ends = [cost(add_scaled(point, sign * step, direction)) for sign in (1.0, -1.0)]
        return unit * ((ends[0] - ends[1]) / (2 * step))
