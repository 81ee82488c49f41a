"""What a loss returns: a scalar, or a dict with metrics and a mutable state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mlox._utils.describe import find_non_array, summarize
from mlox._utils.types import PyTree


def as_dict(returned: Any) -> dict[str, Any]:
    """Return what a loss returned as a dict, the loss itself under "loss"."""
    return dict(returned) if isinstance(returned, Mapping) else {"loss": returned}


def split_loss(
    name: str, returned: Any, model_state: PyTree
) -> tuple[jax.Array, dict[str, jax.Array], PyTree]:
    """Check what a loss returned, and split it.

    Args:
        name: The problem.
        returned: What its loss returned.
        model_state: The mutable state before.

    Returns:
        The loss, all metrics with the loss among them, and the mutable state after.

    Raises:
        ValueError: If it is no floating scalar, nor a dict with one as "loss".
    """
    parts = as_dict(returned)
    if "loss" not in parts:
        raise ValueError(
            f"loss of {name!r} returned a dict with the keys {list(parts)}; expected "
            "'loss' among them."
        )
    new_state = _new_state(name, parts, model_state)
    metrics: dict[str, jax.Array] = {}
    for key, value in parts.items():
        if str(key) in metrics:
            raise ValueError(
                f"loss of {name!r} returned two metrics called {str(key)!r}, one by "
                "another type of key; expected strings that differ."
            )
        try:
            metrics[str(key)] = jnp.asarray(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"loss of {name!r} returned {key!r} = {summarize(value)}; expected "
                + ("one floating scalar." if key == "loss" else "an array.")
                + " Return the loss, or a dict {'loss': loss, 'a metric': array}."
            ) from error
    loss = metrics["loss"]
    if loss.shape or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(
            f"loss of {name!r} returned {loss.dtype}{list(loss.shape)}; expected one "
            "floating scalar, or a dict with one as 'loss'. Reduce it, e.g. by "
            "jnp.mean."
        )
    return loss, metrics, new_state


def _new_state(name: str, parts: dict[str, Any], model_state: PyTree) -> PyTree:
    """Take the mutable state out of what a loss returned."""
    if "model_state" not in parts:
        return model_state
    new_state = parts.pop("model_state")
    if found := find_non_array(new_state):
        raise ValueError(
            f"loss of {name!r} returned a model_state that holds something that is no "
            f"array: {found}."
        )
    new_state = jax.tree.map(jnp.asarray, new_state)
    old, new = (
        jax.tree.map(lambda x: jax.typeof(x).str_short(), tree)
        for tree in (model_state, new_state)
    )
    if old != new:
        raise ValueError(
            f"loss of {name!r} returned a model_state unlike the one that it got: "
            f"{new} against {old}. Pass the initial one to "
            "Problem.create(model_state=), and return one of the same structure, "
            "shapes and dtypes."
        )
    return new_state
