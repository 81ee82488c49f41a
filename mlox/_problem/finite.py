"""Numbers that are not finite: found, and left out where a loss is scaled."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mlox._problem.problem import Problem
from mlox._utils.types import PyTree


def all_finite(tree: PyTree) -> jax.Array:
    """Say whether all numbers of a pytree are finite; a scalar."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def chosen(condition: jax.Array, first: PyTree, second: PyTree) -> PyTree:
    """Return the first of two pytrees if a condition holds, else the second."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)


def kept_finite(before: Problem, after: Problem, finite: jax.Array) -> Problem:
    """Leave an update out if its gradient was not finite; it counts as a step."""
    there, here = (
        (problem.params, problem.opt_state, problem.model_state)
        for problem in (after, before)
    )
    params, opt_state, model_state = chosen(finite, there, here)
    return after.replace(
        params=params,
        opt_state=opt_state,
        model_state=model_state,
        loss_scale=_adapted(before.loss_scale, finite),
    )


def backed_off(problem: Problem, finite: jax.Array) -> Problem:
    """Lower the scale of a problem if the gradient of an upper was not finite."""
    scale = problem.loss_scale
    lower = jnp.minimum(scale.scale, _adapted(scale, finite).scale)
    return problem.replace(loss_scale=scale.replace(scale=lower))


def faulty(before: Problem, after: Problem, losses: jax.Array | None) -> jax.Array:
    """Say whether steps brought numbers that are not finite; a scalar.

    An optimizer may hold an infinity on purpose, as a best loss so far: what was not
    finite before is no fault of these steps. Where a loss is scaled, its overflow is
    what the scale is there for.
    """
    found = [jnp.array(False)]
    if losses is not None and after.loss_scale is None:
        found.append(~jnp.isfinite(losses).all())
    mutable = [(p.params, p.opt_state, p.model_state) for p in (before, after)]
    for old, new in zip(*map(jax.tree.leaves, mutable), strict=True):
        if jnp.issubdtype(new.dtype, jnp.inexact):
            found.append((jnp.isfinite(old) & ~jnp.isfinite(new)).any())
    return jnp.stack(found).any()


def _adapted(scale: Any, finite: jax.Array) -> Any:
    """Return what becomes of a scale, as Flax says of a slope that is finite or not."""
    if scale is None:
        return None
    slope = jnp.where(finite, 0.0, jnp.nan)
    adapted = scale.value_and_grad(lambda z: z * slope)(0.0)[0]
    return jax.lax.stop_gradient(adapted)
