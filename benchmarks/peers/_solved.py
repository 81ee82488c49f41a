"""A lower problem that is solved: logistic regression with a penalty for each feature.

Its answer takes a fixed number of steps of gradient descent from zero, in float64,
which leave it 1e-10 from the solution: a library that stops where nothing changes any
more makes all of them, too. The system is solved by conjugate gradients to a tolerance.
All sides take the hypergradient of the mean loss on other rows, for one step of
gradient descent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _side import Side
from peers import _steps

Settings = Mapping[str, Any]
Answer = Callable[[jax.Array, jax.Array], jax.Array]
Losses = tuple[Callable[..., jax.Array], Callable[[jax.Array], jax.Array]]
UPPER = optax.sgd(0.1)


def draw(rows: int, columns: int) -> dict[str, np.ndarray]:
    """Draw the rows that the lower is fit to, and those of the upper."""
    generator = np.random.default_rng(0)
    truth = generator.normal(size=columns) * (np.arange(columns) < columns // 2)
    found = {}
    for part in ("fit", "held out"):
        x = generator.normal(size=(rows, columns))
        noisy = x @ truth + 2 * generator.normal(size=rows)
        found |= {f"{part} x": x, f"{part} y": np.sign(noisy)}
    return found


def losses(given: Mapping[str, np.ndarray]) -> Losses:
    """Return (params, penalties) -> cost of the lower, and params -> loss of the upper.

    From here on JAX computes in float64.
    """
    jax.config.update("jax_enable_x64", True)
    data = {name: jnp.asarray(array) for name, array in given.items()}

    def fit(params: jax.Array, part: str) -> jax.Array:
        margin = data[f"{part} y"] * (data[f"{part} x"] @ params)
        return jnp.mean(jax.nn.softplus(-margin))

    def cost(params: jax.Array, penalties: jax.Array) -> jax.Array:
        return fit(params, "fit") + 0.5 * jnp.sum(jnp.exp(penalties) * params**2)

    return cost, lambda params: fit(params, "held out")


def start(given: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Return the first parameters and the first penalties."""
    columns = given["fit x"].shape[1]
    return {"lower": jnp.zeros(columns), "upper": jnp.full(columns, -3.0)}


def side(
    answer: Answer,
    loss: Callable[[jax.Array], jax.Array],
    given: Mapping[str, np.ndarray],
    settings: Settings,
    *libraries: str,
) -> Side:
    """Make a side of an answer, (penalties, where the lower starts) -> params."""
    first = start(given)

    def step(state: Any, batches: None) -> tuple[Any, Any]:
        del batches

        def of(upper: jax.Array) -> tuple[jax.Array, jax.Array]:
            lower = answer(upper, first["lower"])
            return loss(lower), lower

        (value, lower), slope = jax.value_and_grad(of, has_aux=True)(state["upper"])
        updates, opt = UPPER.update(slope, state["opt"])
        upper = optax.apply_updates(state["upper"], updates)
        return {"lower": lower, "upper": upper, "opt": opt}, value

    state = {**jax.tree.map(jnp.copy, first), "opt": UPPER.init(first["upper"])}
    read = lambda state, _: {name: state[name] for name in first}
    return _steps.side(step, state, None, settings, read, *libraries)
