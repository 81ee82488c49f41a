"""MAML in mlox, by any method: a start, and a problem with `tasks=` that adapts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _side import Given, Side
from peers import _sinusoids_jax as sinusoids

import mlox


def build(
    given: Given,
    settings: Mapping[str, Any],
    method: mlox.Method,
    loss_fn: Callable[..., Any] = lambda params, points, ctx: sinusoids.error(
        params, points
    ),
) -> Side:
    """Build the side, given the method of the tasks, and the loss of one."""
    params, steps = sinusoids.start(given), settings["inner_steps"]
    support, query = (sinusoids.points(given, part) for part in ("support", "query"))
    init = mlox.Problem.create(
        name="init",
        params=params,
        tx=optax.adam(settings["outer_rate"]),
        loss_fn=lambda params, points, ctx: ctx.adapted(points).mean(),
    )
    adapted = mlox.Problem.create(
        name="adapted",
        params=params,
        tx=optax.sgd(settings["inner_rate"]),
        loss_fn=loss_fn,
        apply_fn=sinusoids.error,
        reset=lambda params, ctx: ctx.init.params,
        method=method,
        unroll_steps=steps,
        tasks=settings["tasks"],
    )
    engine = mlox.Engine(
        [init, adapted],
        u2l={init: [adapted]},
        l2u={adapted: [init]},
        metrics="none" if settings.get("silent") else "all",
    )
    batches = {
        "adapted": jax.tree.map(lambda x: jnp.stack([x] * steps, 1), support),
        "init": jax.tree.map(lambda x: x[:, None], query),
    }
    return sinusoids.side(
        engine.step,
        engine.init(),
        batches,
        lambda state: state["init"].params,
        settings,
    )
