"""A learned schedule in mlox: `hyperparams=` reads the rate of each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _side import Given, Side
from peers import _classifier_jax as classifier

import mlox


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    params, steps = classifier.start(given), len(given["order"])
    schedule = mlox.Problem.create(
        name="schedule",
        params=jnp.full(steps, jnp.log(settings["first rate"])),
        tx=optax.adam(settings["outer rate"]),
        loss_fn=lambda x, batch, ctx: classifier.losses(ctx.net.params, batch).mean(),
    )
    net = mlox.Problem.create(
        name="net",
        params=params,
        tx=optax.inject_hyperparams(optax.sgd)(0.0, momentum=settings["momentum"]),
        hyperparams=lambda ctx: {
            "learning_rate": jnp.exp(ctx.schedule.params[ctx.inner_step])
        },
        loss_fn=lambda w, batch, ctx: classifier.losses(w, batch).mean(),
        method=mlox.Unrolled(levels=0),  # stores all steps, as the others do
        unroll_steps=steps,
        reset=lambda w, ctx: params,
    )
    engine = mlox.Engine([schedule, net], {schedule: [net]}, {net: [schedule]})
    training = classifier.training(given)[:2]
    batches = [
        {"net": training, "schedule": jax.tree.map(lambda x: x[None], query)}
        for query in classifier.queries(given)
    ]
    rates = lambda state, found: {"log_rates": state["schedule"].params}
    return classifier.side(engine.step, engine.init(), batches, rates)
