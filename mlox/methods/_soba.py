"""SOBA: a multiplier that makes one step for each step of the upper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mlox._utils.describe import show_call
from mlox._utils.fields import POSITIVE, check_fields
from mlox.methods._attach import attach
from mlox.methods._base import Answer, exact_pairing, reach
from mlox.methods._implicit import Implicit, transposed_product
from mlox.solvers import Info, Richardson, System


@dataclass(frozen=True, repr=False)
class SOBA:
    r"""Let the multiplier make one step of its own for each step of the upper.

    The memory is lambda. With v the cotangent, and H the Hessian of the lower's cost on
    its last batch, each step of the upper uses lambda and keeps

        lambda - step (H lambda - v):

    one product per step, like `mlox.Implicit(mlox.Richardson(1, step),
    warm_start=True)`, which uses the new lambda. Lower, multiplier and upper so move
    together, and rest only at the exact optimum. Where the published method moves all
    three from one old point, the engine moves the lower first: the upper and lambda see
    the new lower (Gauss-Seidel in place of Jacobi), with the same points of rest.

    Lambda is zero at first. It needs a lower that goes on from step to step, so that an
    engine raises ValueError for one with `reset`. Derivatives of a hypergradient are
    those of a lambda that solves its system.

    Attributes:
        step: The step of the multiplier, below 2 over the largest eigenvalue of H.

    References:
        Dagreou, Ablin, Vaiter and Moreau, A Framework for Bilevel Optimization that
        Enables Stochastic and Global Variance Reduction Algorithms, NeurIPS 2022.

    Example:
        >>> import mlox
        >>> mlox.SOBA(step=0.05)
        SOBA(step=0.05)
    """

    step: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, step=POSITIVE)

    def start(self, point: Any) -> Any:
        """Return the first multiplier, zero."""
        return jax.tree.map(jnp.zeros_like, point)

    def multiplier(
        self, answer: Answer, cotangent: Any, memory: Any | None = None
    ) -> tuple[Any, Any | None, Info]:
        """Return the memory, and what it becomes; without one, solve for lambda."""
        if memory is None:
            return Implicit().multiplier(answer, cotangent)
        one_step = Implicit(Richardson(1, self.step), warm_start=True)
        _, kept, info = one_step.multiplier(answer, cotangent, memory)
        # As a constant it would leave its response out of derivatives of the
        # hypergradient, silently.
        product = transposed_product(answer)
        used = attach(
            lambda lam: jax.tree.map(jnp.subtract, product(lam), cotangent),
            memory,
            system=answer.system,
        )
        return used, kept, info

    def pairing(
        self, cost: Callable[[Any], jax.Array], point: Any, multiplier: Any
    ) -> jax.Array:
        """Return <multiplier, d cost/dy>, exactly."""
        return exact_pairing(cost, point, multiplier)

    __repr__ = show_call


@reach.register
def _(method: SOBA) -> System:
    del method
    return System.DEFINITE
