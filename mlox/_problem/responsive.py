"""The part of an answer that responds to uppers; the rest is a constant for them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mlox._problem.problem import Problem
from mlox._utils.tree import combine, partition
from mlox._utils.types import PyTree
from mlox.methods import Loop


def responsive_part(problem: Problem, params: PyTree) -> PyTree:
    """Return the part of `params` that responds to uppers, None for the rest.

    Frozen parameters are not unknowns of an implicit answer. In loops that are
    differentiated they may still respond, through `reset`.
    """
    trainable = None if isinstance(problem.method, Loop) else problem.trainable
    part = params
    tasks = problem.tasks
    one = params if tasks is None else jax.tree.map(lambda x: x[0], params)
    for mask in (problem.meta_trainable, trainable):
        if mask is not None:
            part = partition(mask(one), part)
    return part


def responsive_state(problem: Problem) -> PyTree:
    """Return the floating part of the mutable state, None for the rest."""

    def keep(leaf: jax.Array) -> jax.Array | None:
        return leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None

    return jax.tree.map(keep, problem.model_state)


def stop_unresponsive(problem: Problem, params: PyTree) -> PyTree:
    """Return `params`, with its unresponsive part as constants."""
    return combine(responsive_part(problem, params), jax.lax.stop_gradient(params))
