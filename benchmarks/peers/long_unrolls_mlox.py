"""Long loops in mlox: "levels" of checkpoints, or "memory", a budget in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax
from _side import Given, Side
from peers import _long_jax as long

import mlox


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    params, weights = long.start(given)
    steps, true = long.data(given)
    method = mlox.Unrolled(levels=settings.get("levels"), memory=settings.get("memory"))
    upper = mlox.Problem.create(
        name="weights",
        params=weights,
        tx=optax.sgd(settings["upper_rate"]),
        loss_fn=lambda params, batch, ctx: long.true_loss(ctx.fit.params, batch),
    )
    lower = mlox.Problem.create(
        name="fit",
        params=params,
        tx=long.optimizer(settings),
        loss_fn=lambda params, batch, ctx: long.fit_loss(
            params, ctx.weights.params, batch
        ),
        method=method,
        unroll_steps=len(given["x"]),
    )
    engine = mlox.Engine([upper, lower], u2l={upper: [lower]}, l2u={lower: [upper]})
    batches = {"fit": steps, "weights": jax.tree.map(lambda x: x[None], true)}
    return long.side(
        engine.step, engine.init(), batches, lambda state: state["weights"].params
    )
