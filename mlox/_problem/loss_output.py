"""The output of a loss: a scalar, or a dict with metrics and a mutable state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mlox._utils.describe import summarize
from mlox._utils.fields import check_like
from mlox._utils.types import Metrics, PyTree

EXPECTED = "a floating scalar, or a dict of arrays with one as 'loss'"


def as_dict(returned: Any) -> dict[str, Any]:
    """Return the output of a loss as a dict, with the loss as "loss"."""
    return dict(returned) if isinstance(returned, Mapping) else {"loss": returned}


def split_loss(
    name: str, returned: Any, model_state: PyTree
) -> tuple[jax.Array, Metrics, PyTree]:
    """Validate the output of a loss, and split it.

    Args:
        name: The problem.
        returned: The output of its loss.
        model_state: The mutable state before.

    Returns:
        The loss, all metrics including the loss, and the mutable state after.

    Raises:
        ValueError: If the output is neither a floating scalar, nor a dict with one as
            "loss".
    """
    label = _label(name)
    parts = as_dict(returned)
    if "model_state" in parts:
        new_state = parts.pop("model_state")
        model_state = check_model_state(name, new_state, model_state)
    metrics: Metrics = {}
    for key, value in parts.items():
        if str(key) in metrics:
            raise ValueError(
                f"{label} returned two metrics called {str(key)!r}, as keys of two "
                "types; expected strings that differ."
            )
        try:
            metrics[str(key)] = jnp.asarray(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{label} returned {key!r} = {summarize(value)}; expected {EXPECTED}."
            ) from error
    loss = metrics.get("loss")
    if loss is None or loss.shape or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(
            f"{label} returned {summarize(returned)}; expected {EXPECTED}. Reduce an "
            "array, e.g. by jnp.mean."
        )
    return loss, metrics, model_state


def check_model_state(name: str, new: Any, old: PyTree) -> PyTree:
    """Return the mutable state that a loss returned; raise unless it fits the old."""
    check_like(
        f"{_label(name)}: model_state",
        new,
        old,
        "the one that it got",
        "Pass the first one to Problem.create(model_state=), and return the same "
        "structure, shapes and dtypes.",
    )
    return jax.tree.map(jnp.asarray, new)


def _label(name: str) -> str:
    return f"loss of {name!r}"
