"""The residual of an answer at draws before the last one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.lagrangian import residual
from mlox._hypergradient.point import EvaluationPoint, Unknowns

# A draw is what a step sees by chance: its batch and its PRNG key, and the counts from
# which a loss may choose its data itself. The rest is no chance and stays: the answer,
# those of its neighbours, and the mutable state and constants of the last step.


def draws_of(
    plan: Plan, b: Block, point: EvaluationPoint
) -> Callable[[Any], Callable[[Unknowns], Unknowns]] | None:
    """Return i -> the residual of a block at its i-th last draw, if it has several."""
    if point.inputs[b.tops[0]].draws is None:
        return None
    return lambda i: lambda y: residual(plan, b, y, at_draw(b.tops[0], i, point))


def at_draw(name: str, i: jax.Array | int, point: EvaluationPoint) -> EvaluationPoint:
    """Return the point with the i-th last draw of a problem."""
    inputs = point.inputs[name]
    i = jnp.asarray(i, inputs.step.dtype)

    def take(x: jax.Array) -> jax.Array:
        # One batch in each iteration of a solver: a part of the stack is not copied.
        last = x.shape[0] - 1
        return jax.lax.dynamic_index_in_dim(x, last - i, keepdims=False)

    batch, rng = jax.tree.map(take, inputs.draws)
    drawn = inputs._replace(
        batch=batch,
        rng=rng,
        step=inputs.step - i,
        inner_step=jnp.maximum(inputs.inner_step - i, 0),
    )
    return point._replace(inputs={**point.inputs, name: drawn})
