"""Data attribution in mlox: the hypergradient of an upper of one weight per example."""

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
    weights = mlox.Problem.create(
        name="weights",
        params=jnp.ones(len(given["x"])),
        tx=optax.sgd(0.0),
        loss_fn=lambda v, batch, ctx: classifier.losses(ctx.net.params, batch).mean(),
    )
    net = mlox.Problem.create(
        name="net",
        params=classifier.start(given),
        tx=optax.adam(**settings["adam"], eps_root=settings["eps_root"]),
        loss_fn=lambda w, batch, ctx: jnp.mean(
            ctx.weights.params[batch[2]] * classifier.losses(w, batch)
        ),
        method=mlox.Unrolled(levels=0),  # stores all steps, as the others do
        unroll_steps=len(given["order"]),
    )
    engine = mlox.Engine([weights, net], {weights: [net]}, {net: [weights]})
    training = classifier.training(given)

    def step(state: Any, batches: Any) -> Any:
        return state, engine.hypergradient(state, batches, "weights")

    batches = [
        {"net": training, "weights": jax.tree.map(lambda x: x[None], query)}
        for query in classifier.queries(given)
    ]
    tau = lambda state, found: {"tau": found[1]}
    return classifier.side(step, engine.init(), batches, tau)
