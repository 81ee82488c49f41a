"""The direction of BOME: how both levels step, from first derivatives alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mlox._problem.context import Context, Neighbour
from mlox._utils.tree import (
    STANDARD_PROMOTION,
    add_scaled,
    norm,
    partition,
    scale,
    vdot,
)
from mlox._utils.types import Mask, PyTree
from mlox.rewritings._both import Both
from mlox.rewritings._losses import Evaluated, other_key

# With y_T reached from y by T steps on C, the lower is solved where
#
#     q(x, y) = C(x, y) - C(x, y_T)
#
# is zero. BOME descends F + mu q in (x, y) together, at the least mu >= 0 for which
#
#     <grad q, grad F + mu grad q> >= eta |grad q|^2:
#
# F falls as far as it can while q falls fast enough. y_T is a constant, so that
#
#     grad q = (C_x(x, y) - C_x(x, y_T), C_y(x, y)).


class Direction(NamedTuple):
    """The direction of a step, and what was computed on the way.

    Attributes:
        x: Its part along the upper.
        y: Its part along the lower.
        multiplier: mu.
        constraint: q.
        loss: F + mu q.
        upper: F.
        lower: C.
    """

    x: PyTree
    y: PyTree
    multiplier: jax.Array
    constraint: jax.Array
    loss: jax.Array
    upper: Evaluated
    lower: Evaluated


@dataclass(frozen=True)
class Descent:
    """The direction in which both levels step.

    Attributes:
        both: F and C.
        reference: The problem that holds y_T.
        eta: How fast q has to fall.
        train_upper: Which parameters of the upper are trained; None for all.
        train_lower: The same of the lower, for one task.
    """

    both: Both
    reference: str
    eta: float
    train_upper: Mask | None
    train_lower: Mask | None

    def find(
        self, x: Neighbour, y: Neighbour, batch: PyTree, ctx: Context, owner: str
    ) -> Direction:
        """Return the direction at a point, of which nothing is differentiated."""
        z = self.both.see(ctx[self.reference])
        # Stopped, so that whoever differentiates a loss of this takes no second
        # derivatives.
        x, y, z = (_stop(at) for at in (x, self.both.see(y), z))
        keys = ctx.rng, other_key(ctx.rng)

        def costs(params: PyTree, at: Neighbour) -> tuple[Evaluated, Evaluated]:
            x_at, y_at = (
                dataclasses.replace(n, params=p)
                for n, p in zip((x, at), params, strict=True)
            )
            return self.both.evaluate(x_at, y_at, batch, ctx, owner, keys)

        f_slopes, f = _slopes(lambda p: costs(p, y)[0], (x.params, y.params))
        c_slopes, c = _slopes(lambda p: costs(p, y)[1], (x.params, y.params))
        z_slope, c_z = _slopes(lambda p: costs((p, z.params), z)[1], x.params)
        q_slopes = optax.tree.sub(c_slopes[0], z_slope), c_slopes[1]
        mu = find_multiplier(
            self._trained(f_slopes, x, y), self._trained(q_slopes, x, y), self.eta
        )
        along_x, along_y = add_scaled(f_slopes, mu, q_slopes)
        q = c.loss - c_z.loss
        with STANDARD_PROMOTION():
            loss = f.loss + mu * q
        return Direction(along_x, along_y, mu, q, loss, f, c)

    def _trained(self, slopes: PyTree, x: Neighbour, y: Neighbour) -> PyTree:
        """Return the slopes of what is trained, which alone moves."""
        first = jax.tree.map(lambda p: p[0], y.params) if y.tasks else y.params
        masks = (self.train_upper, x.params), (self.train_lower, first)
        return [
            part if mask is None else partition(mask(params), part)
            for (mask, params), part in zip(masks, slopes, strict=True)
        ]


def find_multiplier(f_slopes: PyTree, q_slopes: PyTree, eta: float) -> jax.Array:
    """Return mu = max(0, eta |grad q|^2 - <grad F, grad q>) / |grad q|^2, or 0 for 0/0.

    Example:
        >>> print(find_multiplier(jnp.array([1.0, 0.0]), jnp.array([-2.0, 0.0]), 0.5))
        1.0
    """
    # By the unit vector along grad q, as squares of small slopes underflow.
    length = norm(q_slopes)
    divisor = jnp.where(length > 0, length, 1)
    with STANDARD_PROMOTION():
        needed = eta * length - vdot(f_slopes, scale(1 / divisor, q_slopes))
        return jnp.where(length > 0, jnp.maximum(needed, 0) / divisor, 0)


def _slopes(
    cost: Callable[[PyTree], Evaluated], params: PyTree
) -> tuple[PyTree, Evaluated]:
    """Return the gradient of a cost, and what it has returned."""

    def loss(params: PyTree) -> tuple[jax.Array, Evaluated]:
        found = cost(params)
        return found.loss, found

    return jax.grad(loss, has_aux=True)(params)


def _stop(neighbour: Neighbour) -> Neighbour:
    params = jax.lax.stop_gradient(neighbour.params)
    return dataclasses.replace(neighbour, params=params)
