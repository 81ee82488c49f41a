"""Precision: a state and its batches in float64 or float32."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlox._problem.loss_transforms import Accumulated, MixedPrecision
from mlox._problem.proximal import Proximal
from mlox._utils.describe import annotate_errors
from mlox._utils.types import PyTree, State

# References are computed in float64, where a difference of two costs has ten good
# digits. A loss that casts to a lower precision inside is not touched, but for
# `MixedPrecision`, which can be taken off.

REMEDY = (
    "it computes its references in float64. Let every dtype in losses, project and tx "
    "follow the parameters, e.g. jnp.zeros((), params.dtype) for jnp.zeros((), "
    "jnp.float32)"
)


@contextlib.contextmanager
def float64(task: str, name: str) -> Generator[None]:
    """Allow arrays in float64, whatever the configuration of JAX is.

    An error inside gets a note that says so: a loss that is bound to another precision
    fails there alone.

    Args:
        task: What needs float64, "check" or "compare".
        name: The problem whose hypergradient it is.
    """
    with annotate_errors(f"mlox.{task} of {name!r}: {REMEDY}"), jax.enable_x64(True):
        yield


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Return a pytree with its floating leaves in a dtype."""

    # By NumPy: every operation of JAX on new shapes would compile a program.
    def cast_leaf(leaf: Any) -> Any:
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return np.asarray(leaf).astype(dtype) if floating else leaf

    return jax.tree.map(cast_leaf, tree)


def cast_state(state: State, dtype: Any) -> dict[str, Any]:
    """Return a state in a precision, its losses without `MixedPrecision`."""
    return {
        name: dataclasses.replace(
            cast(problem, dtype), loss_fn=without_mixed(problem.loss_fn)
        )
        for name, problem in state.items()
    }


def without_mixed(loss_fn: Any) -> Any:
    """Return a loss that is not evaluated in mixed precision."""
    if isinstance(loss_fn, MixedPrecision):
        return without_mixed(loss_fn.loss_fn)
    if isinstance(loss_fn, Accumulated | Proximal):
        return dataclasses.replace(loss_fn, loss_fn=without_mixed(loss_fn.loss_fn))
    return loss_fn


def is_double(state: State) -> bool:
    """Return whether all of a state, and what its losses compute, is in float64."""
    return _computes_in(state, jnp.float64)


def is_single(state: State) -> bool:
    """Return whether the same is in float32 or float64."""
    return _computes_in(state, jnp.float32, jnp.float64)


def _computes_in(state: State, *dtypes: Any) -> bool:
    params = jax.tree.leaves([problem.params for problem in state.values()])
    return all(leaf.dtype in dtypes for leaf in params) and all(
        without_mixed(problem.loss_fn) == problem.loss_fn for problem in state.values()
    )
