"""The side of gradients.py in JAX."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import _timing
import jax
import jax.numpy as jnp
import numpy as np
from _side import Side
from peers import _reweighting
from peers._given import part_of

PyTree = Any


def build(given: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Side:
    """Build the step, with the options of the compiler that are told."""
    each, rate = _reweighting.losses(settings["model"]), settings["rate"]

    def step(params: PyTree, batch: PyTree) -> tuple[PyTree, jax.Array]:
        loss = lambda params: jnp.mean(each(params, batch))
        value, slope = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda x, g: x - rate * g, params, slope), value

    state = jax.tree.map(jnp.asarray, part_of(given, "lower params/"))
    data = jax.device_put(_reweighting.data_of(given)["upper"])
    compiled = _timing.compiled(step, state, data[0], settings.get("options"))
    upcoming = itertools.cycle(data)

    def advance(steps: int) -> None:
        nonlocal state
        value = None
        for batch in itertools.islice(upcoming, steps):
            before = value
            state, value = compiled.program(state, batch)
            jax.block_until_ready(before)
        jax.block_until_ready(state)

    def outcome() -> dict[str, np.ndarray]:
        return {"losses": np.asarray(each(state, data[0]))}

    return Side(advance, outcome, {"JAX": jax.__version__}, compiled.facts)
