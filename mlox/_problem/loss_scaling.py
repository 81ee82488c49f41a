"""Loss scaling: gradients in half precision that neither underflow nor overflow."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlox._problem.problem import Problem
from mlox._utils.tree import widen
from mlox._utils.types import PyTree


def scale_cotangent(tree: PyTree, scale: Any) -> PyTree:
    """Return the same values, with an adjoint that multiplies by a scale.

    With g(x) = scale_cotangent(f(scale_cotangent(x, 1 / s)), s) the gradient of g is
    that of f, but the cotangents inside f are s times as large.

    Example:
        >>> gradient = jax.grad(lambda x: scale_cotangent(x * x, 1024.0))(3.0)
        >>> print(gradient)
        6144.0
    """
    scale = jax.lax.stop_gradient(jnp.asarray(scale, jnp.float32))

    def multiply(x: jax.Array) -> jax.Array:
        # The initial scale of Flax, 2^16, is too large for float16.
        wide = widen(x)
        return (wide * scale.astype(wide.dtype)).astype(x.dtype)

    # A linear map S with another transpose: S = 1 and S^T = s. A `custom_vjp` would
    # forbid forward mode, which Hessian-vector products use, and
    # `jax.custom_derivatives.linear_call` has no rule for vmap. The solution of the
    # system 1 x = b, solved by the identity and transposed by the product, has all
    # rules. The transpose of S^T is S: tangents of the adjoint are not scaled twice, so
    # derivatives of any order are unchanged.
    return jax.tree.map(
        lambda x: jax.lax.custom_linear_solve(
            lambda v: v,
            jnp.asarray(x),
            solve=lambda _, b: b,
            transpose_solve=lambda _, b: multiply(b),
        ),
        tree,
    )


def all_finite(tree: PyTree) -> jax.Array:
    """Return whether all numbers of a pytree are finite; a scalar."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def skip_overflow(before: Problem, after: Problem, finite: jax.Array) -> Problem:
    """Return the problem without an update whose gradient was not finite.

    The update still counts as a step, and the scale is adapted.
    """
    new, old = (
        (problem.params, problem.opt_state, problem.model_state, problem.memory)
        for problem in (after, before)
    )
    params, opt_state, model_state, memory = optax.tree.where(finite, new, old)
    return dataclasses.replace(
        after,
        params=params,
        opt_state=opt_state,
        model_state=model_state,
        memory=memory,
        loss_scale=_adapt(before.loss_scale, finite),
    )


def back_off(problem: Problem, finite: jax.Array) -> Problem:
    """Return the problem with its scale lowered if an upper's gradient overflowed."""
    scale = problem.loss_scale
    lower = jnp.minimum(scale.scale, _adapt(scale, finite).scale)
    return dataclasses.replace(problem, loss_scale=scale.replace(scale=lower))


def _adapt(scale: Any, finite: jax.Array) -> Any:
    """Return the loss scale that Flax computes after a gradient, finite or not."""
    if scale is None:
        return None
    slope = jnp.where(finite, 0.0, jnp.nan)
    adapted = scale.value_and_grad(lambda z: z * slope)(0.0)[0]
    return jax.lax.stop_gradient(adapted)
