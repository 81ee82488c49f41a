"""Networks with relu, which jump somewhere, healthy and not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

from .case import TRAIN, Built, Case, pair
from .proofs import against_program, hypergradient


def predict(w: Any, x: Any) -> Any:
    offset = jnp.broadcast_to(w["offset"], (len(x), 4))
    return jax.nn.relu(x @ w["in"] + offset) @ w["out"]


def error(w: Any, data: Any) -> Any:
    return jnp.mean((predict(w, data[0]) - data[1]) ** 2)


def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
    errors = (predict(w, batch[0]) - batch[1]) ** 2
    decay = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(w))
    return jnp.mean(jax.nn.sigmoid(ctx.penalty.params) * errors) + 0.02 * decay


def network(**fit: Any) -> Built:
    """Build a network with a weight for each row."""
    draw = np.random.default_rng(8).normal
    first = {
        "in": jnp.array(0.5 * draw(size=(4, 4))),
        "offset": jnp.array(0.3 * draw(size=4)),
        "out": jnp.array(0.5 * draw(size=4)),
    }
    return pair(
        {"params": first, "loss_fn": loss, **fit},
        {
            "params": jnp.zeros(len(TRAIN[1])),
            "loss_fn": lambda params, batch, ctx: error(ctx.fit.params, batch),
        },
    )


def clipped() -> Built:
    tx = optax.chain(optax.clip(1e-4), optax.sgd(0.3))
    return network(tx=tx, method=mlox.Implicit(mlox.GMRES(iterations=30)))


def against_trained(*built: Any) -> float:
    """Compare with the hypergradient after long training without clipping."""
    trained = network(tx=optax.sgd(0.1, momentum=0.9), unroll_steps=2000)
    found, truth = (hypergradient(*b) for b in (built, trained))
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def unrolled() -> Built:
    tx = optax.sgd(0.1, momentum=0.9)
    return network(tx=tx, unroll_steps=15, method=mlox.Unrolled())


FAULTS = [Case("clipped slopes of a network", clipped, "CLIPPED", against_trained)]
HEALTHY = [Case("a network, unrolled", unrolled, None, against_program)]
