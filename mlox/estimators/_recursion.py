"""What recursive estimators keep, and how they move on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mlox._utils.types import PyTree

# With g(z; xi) the gradient at the parameters z on the draw xi, and a weight w,
#
#     d_t = g(z_t; xi_t) + w (d_{t-1} - g(z_{t-1}; xi_t)),
#
# the same draw in both gradients, so that their difference has the variance of a step
# and not that of a draw. Written so, w = 0 is the plain gradient to the last bit.


class RecursiveState(NamedTuple):
    """The state of a recursive estimator.

    Attributes:
        steps: The number of updates.
        params: The parameters of the last update, z_{t-1}.
        estimate: Its estimate, d_{t-1}.
    """

    steps: jax.Array
    params: PyTree
    estimate: PyTree


GradFn = Callable[[PyTree], PyTree]
Estimate = Callable[[PyTree, RecursiveState, GradFn], PyTree]


def recursive(estimate: Estimate) -> optax.GradientTransformationExtraArgs:
    """Return the transformation with (gradients, state, grad_fn) -> d_t."""

    def init(params: PyTree) -> RecursiveState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        # A copy: a state that is donated must not hold one buffer twice.
        return RecursiveState(
            jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params), zeros
        )

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, RecursiveState]:
        if params is None or "grad_fn" not in extra:
            raise TypeError(
                "a recursive estimator needs the parameters and grad_fn=, a function "
                "params -> gradient at the draw of the step. mlox.Engine passes both; "
                "in a loop of your own call update(grads, state, params, grad_fn=...)."
            )
        found = estimate(updates, state, extra["grad_fn"])
        return found, RecursiveState(state.steps + 1, params, found)

    return optax.GradientTransformationExtraArgs(init, update)


def correct(
    gradient: PyTree, weight: jax.Array | float, state: RecursiveState, before: PyTree
) -> PyTree:
    """Return g(z_t) + weight (d_{t-1} - g(z_{t-1}))."""

    def leaf(g: jax.Array, d: jax.Array, old: jax.Array) -> jax.Array:
        return g + jnp.asarray(weight, g.dtype) * (d - old)

    return jax.tree.map(leaf, gradient, state.estimate, before)
