"""The optimizer of a problem: its step, its reset, and the transpose of its step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlox._problem.problem import Problem
from mlox._problem.responsive import responsive_part
from mlox._problem.transformation import (
    NO_FUNCTIONS,
    Functions,
    build_transformation,
)
from mlox._utils.describe import annotate_errors
from mlox._utils.fields import check_like
from mlox._utils.tree import STANDARD_PROMOTION, combine
from mlox._utils.types import PyTree


def optimizer_of(problem: Problem) -> optax.GradientTransformation:
    """Return the optimizer of the trainable parameters of all tasks."""
    return build_transformation(problem.tx, problem.trainable, problem.tasks)


def apply_gradients(
    problem: Problem,
    grads: PyTree,
    model_state: PyTree,
    loss: Any,
    functions: Functions = NO_FUNCTIONS,
) -> Problem:
    """Return the problem after one optimizer step.

    `functions` are given to the optimizer: `value_fn` and `grad_fn`, see
    `mlox._problem.transformation`.
    """
    updates, opt_state = _update(problem, grads, loss, functions)
    params = _move(problem, updates)
    return dataclasses.replace(
        problem,
        params=params,
        # Some transformations promote their state among parameters of mixed dtypes.
        opt_state=jax.tree.map(_cast_like, opt_state, problem.opt_state),
        model_state=model_state,
        step=problem.step + 1,
    )


def restart(problem: Problem, params: PyTree) -> Problem:
    """Return the problem at the start of an inner loop, with params from `reset`."""
    _check_params(problem, "reset(params, ctx)", params)
    opt_state = optimizer_of(problem).init(params)
    return dataclasses.replace(problem, params=params, opt_state=opt_state)


def pull_step(
    problem: Problem, gradient: PyTree, cotangent: PyTree, loss: Any
) -> tuple[PyTree, PyTree]:
    """Return the cotangents of the next step, the optimizer's state held fixed.

    The step is T(g, theta) = theta + u(g, theta), with the optimizer's update u, then
    projected where the problem has `project`.

    Args:
        problem: The problem, at theta.
        gradient: The whole gradient g, of all parameters: one that clips by a norm, for
            instance, measures also those that do not respond.
        cotangent: v, like the responsive part of the parameters.
        loss: The loss, for optimizers that use it.

    Returns:
        (dT/dg)^T v and (dT/dtheta)^T v at fixed g, like v.
    """

    def step(gradient_part: PyTree, params_part: PyTree) -> PyTree:
        params = combine(params_part, problem.params)
        there = dataclasses.replace(problem, params=params)
        updates, _ = _update(there, combine(gradient_part, gradient), loss)
        return responsive_part(problem, _move(there, updates))

    parts = (responsive_part(problem, tree) for tree in (gradient, problem.params))
    return jax.vjp(step, *parts)[1](cotangent)


def _update(
    problem: Problem, grads: PyTree, loss: Any, functions: Functions = NO_FUNCTIONS
) -> tuple[PyTree, PyTree]:
    # Some transformations use the loss: reduce_on_plateau, polyak_sgd.
    tx = optax.with_extra_args_support(optimizer_of(problem))
    with annotate_errors(f"tx of problem {problem.name!r}", gradient=grads):
        return tx.update(
            grads, problem.opt_state, problem.params, value=loss, **functions
        )


def _move(problem: Problem, updates: PyTree) -> PyTree:
    """Return the parameters after an update, projected."""
    with STANDARD_PROMOTION():  # optax adds updates to params of other dtypes
        params = optax.apply_updates(problem.params, updates)
    if problem.project is not None:
        with annotate_errors(f"project of problem {problem.name!r}", params=params):
            one = problem.project
            params = (one if problem.tasks is None else jax.vmap(one))(params)
        _check_params(problem, "project(params)", params)
    return params


def _cast_like(new: Any, old: jax.Array) -> jax.Array:
    # `optax.tree.cast_like` fails for typed keys and for Python numbers.
    array = jnp.asarray(new)
    return array if array.dtype == old.dtype else array.astype(old.dtype)


def _check_params(problem: Problem, function: str, params: PyTree) -> None:
    """Raise ValueError unless a function returned a pytree like the params."""
    check_like(
        f"problem {problem.name!r}: {function}",
        params,
        problem.params,
        "params",
        "Return the same structure, shapes and dtypes.",
    )
