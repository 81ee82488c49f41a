"""Dynamic loss scaling: what an update whose gradient is not finite does."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlox._problem import Problem

PyTree = Any


def kept_finite(before: Problem, after: Problem, grads: PyTree) -> Problem:
    """Leave an update out if its gradient is not finite; it counts as a step."""
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(grads)]).all()

    def chosen(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    return after.replace(
        params=chosen(after.params, before.params),
        opt_state=chosen(after.opt_state, before.opt_state),
        model_state=chosen(after.model_state, before.model_state),
        loss_scale=_adapted(before.loss_scale, grads),
    )


def backed_off(problem: Problem, grads: PyTree) -> Problem:
    """Lower the scale of a problem if the gradient of an upper is not finite."""
    scale = problem.loss_scale
    lower = jnp.minimum(scale.scale, _adapted(scale, grads).scale)
    return problem.replace(loss_scale=scale.replace(scale=lower))


def _adapted(scale: Any, grads: PyTree) -> Any:
    """Return what becomes of a scale, as Flax says of a function of this gradient."""
    if scale is None:
        return None
    grads = jax.lax.stop_gradient(grads)
    nothing = jax.tree.map(jnp.zeros_like, grads)
    adapted = scale.value_and_grad(lambda z: optax.tree.vdot(z, grads))(nothing)[0]
    return jax.lax.stop_gradient(adapted)
