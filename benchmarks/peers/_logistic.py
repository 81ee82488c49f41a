"""The job of logistic.py in JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _jobs import Job
from peers import _two_levels

Params = Mapping[str, jax.Array]


def make_job(given: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Job:
    """Make the job, whose losses hold the data; its batches are empty."""
    x, y = (
        {
            name: jnp.asarray(given[f"{name} batches/{part}"][0])
            for name in ("lower", "upper")
        }
        for part in ("x", "y")
    )

    def fit(lower: Params, name: str) -> jax.Array:
        return jnp.mean(jax.nn.softplus(-y[name] * (x[name] @ lower["w"])))

    def lower_loss(lower: Params, upper: Params, batch: Any) -> dict[str, jax.Array]:
        penalty = 0.5 * jnp.sum(jnp.exp(upper["penalty"]) * lower["w"] ** 2)
        return {"loss": fit(lower, "lower") + penalty}

    def upper_loss(lower: Params, upper: Params, batch: Any) -> dict[str, jax.Array]:
        prior = settings["prior"] * jnp.sum(upper["penalty"] ** 2)
        return {"loss": fit(lower, "upper") + prior}

    empty = {"lower": jnp.zeros((settings["unroll"], 0)), "upper": jnp.zeros((1, 0))}
    return _two_levels.make_job(given, settings, (lower_loss, upper_loss), empty)
