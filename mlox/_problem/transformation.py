"""The optax transformation of a problem: without frozen parameters, one per task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlox._problem.masked import fill_masked, mask_like
from mlox._utils.tree import STANDARD_PROMOTION, vdot
from mlox._utils.types import Mask, PyTree

# An update is given, beside gradients, state and parameters, what optax names
#
#     value     the loss
#     grad      its gradient: the gradients with which the update began
#     value_fn  params -> the loss, at the batch, key and neighbours of the step
#     grad_fn   params -> its gradient, likewise.
#
# A transformation that ignores a function costs nothing: it is not even traced. Where a
# step has none, as in a probe, they are those of the linear cost with that value and
# gradient.

Functions = Mapping[str, Callable[[PyTree], Any]]
NO_FUNCTIONS: Functions = MappingProxyType({})


# Cached, so that a new problem with equal arguments does not compile again.
@functools.lru_cache(maxsize=64)
def build_transformation(
    tx: optax.GradientTransformation, trainable: Mask | None, tasks: int | None
) -> optax.GradientTransformation:
    """Return the transformation that updates the parameters of a problem."""
    if tasks is not None:
        return _map_tasks(build_transformation(tx, trainable, None), tasks)
    tx = _promote_as_standard(_add_functions(tx))
    if trainable is None:
        return tx
    parts: dict[Hashable, Any] = {"trained": tx, "frozen": optax.set_to_zero()}

    def labels(params: PyTree) -> PyTree:
        return jax.tree.map(lambda m: "trained" if m else "frozen", trainable(params))

    return optax.partition(parts, labels)


def _add_functions(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Return a transformation that is given all that optax has names for."""
    if not isinstance(tx, optax.GradientTransformationExtraArgs):
        return tx

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        def value_fn(there: PyTree, grad_fn: Any = None) -> jax.Array:
            del grad_fn
            moved = jax.tree.map(jnp.subtract, fill_masked(there, params), params)
            return extra["value"] + vdot(updates, moved)

        def grad_fn(there: PyTree) -> PyTree:
            return mask_like(there, updates)

        functions = {"value_fn": value_fn, "grad_fn": grad_fn}
        return tx.update(updates, state, params, grad=updates, **{**functions, **extra})

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _promote_as_standard(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Return a transformation that works where JAX promotes no dtypes implicitly.

    With `jax_numpy_dtype_promotion="strict"`, as some set it to find bugs, most of
    optax 0.2.8 fails: `optax.adam` takes a Python float to the power of an int32 count.
    """

    def init(params: PyTree) -> PyTree:
        with STANDARD_PROMOTION():
            return tx.init(params)

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        with STANDARD_PROMOTION():
            return tx.update(updates, state, params, **extra)

    return type(tx)(init, update)


def _map_tasks(
    tx: optax.GradientTransformation, tasks: int
) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that has a state for each task, and updates each."""
    single = optax.with_extra_args_support(tx)

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        # Functions are pytrees, too: `jax.tree_util.Partial` of arrays of tasks.
        def update_one(extra: dict[str, Any], *args: PyTree) -> Any:
            return single.update(*args, **extra)

        losses = jnp.broadcast_to(extra["value"], (tasks,))
        return jax.vmap(update_one)({**extra, "value": losses}, updates, state, params)

    return optax.GradientTransformationExtraArgs(jax.vmap(single.init), update)
