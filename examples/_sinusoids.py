"""The tasks of maml.py, sinusoids; a network, and its error after adaptation."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

Points = tuple[jax.Array, jax.Array]  # x and y, each [SHOTS, 1], or [tasks, SHOTS, 1]

SHOTS, SHOWN = 10, (0, 1, 5, 10)
network = nn.Sequential([nn.Dense(40), nn.relu, nn.Dense(40), nn.relu, nn.Dense(1)])


def draw(cycle: Any, number: Any) -> tuple[Points, Points]:
    """Draw a task: its support points and its query points.

    A task is a * sin(x + p) with a in [0.1, 5] and p in [0, pi], at x in [-5, 5].
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), cycle), number)
    keys = jax.random.split(key, 3)
    amplitude = jax.random.uniform(keys[0], minval=0.1, maxval=5.0)
    phase = jax.random.uniform(keys[1], maxval=jnp.pi)
    x = jax.random.uniform(keys[2], (2 * SHOTS, 1), minval=-5.0, maxval=5.0)
    y = amplitude * jnp.sin(x + phase)
    return (x[:SHOTS], y[:SHOTS]), (x[SHOTS:], y[SHOTS:])


def drawn(cycle: Any, tasks: int) -> tuple[Points, Points]:
    """Draw all tasks of a cycle."""
    return jax.vmap(draw, (None, 0))(cycle, jnp.arange(tasks))


def error(params: Any, points: Points) -> Any:
    """Return the mean squared error on one task."""
    return jnp.mean((network.apply(params, points[0]) - points[1]) ** 2)


def errors_of(
    init: Any,
    loss: Callable[[Any, Points, Any], Any],
    tx: optax.GradientTransformation,
    tasks: int,
    number: int = 2**31 - 1,  # more cycles than any training has
) -> jax.Array:
    """Return the mean errors on new tasks after 0, 1, ... steps of `tx` from init."""

    def adapted(points: Points, others: Points) -> jax.Array:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            grads = jax.grad(loss)(params, points, init)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), error(params, others)

        return jax.lax.scan(step, (init, tx.init(init)), length=max(SHOWN) + 1)[1]

    return jax.vmap(adapted)(*drawn(number, tasks)).mean(axis=0)
