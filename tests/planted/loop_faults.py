"""Faults of inner loops that are differentiated, and of schedules."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import mlox

from .case import TRAIN, Built, Case, pair
from .proofs import against_program, unmoved


def zero_gradient() -> Built:
    """Adam with eps_root = 0, and a feature that is zero in all rows."""
    absent = np.array([[1.0, 1.0, 1.0, 0.0]])
    return pair(
        {"tx": optax.adam(0.1), "unroll_steps": 30, "method": mlox.Unrolled()},
        train=(TRAIN[0] * absent, TRAIN[1]),
    )


def truncated() -> Built:
    """The last two of 40 short steps."""
    method = mlox.Unrolled(last_steps=2)
    return pair({"tx": optax.sgd(0.02), "unroll_steps": 40, "method": method})


def waiting() -> Built:
    """The upper waits for 100,000 steps of the fit."""
    return pair({"warmup_steps": 100_000})


def chaotic() -> Built:
    """Steps twice as long as is stable, on a loss with bounded slopes."""

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        x, y = batch
        errors = jnp.log(jnp.cosh(x @ w - y)).mean()
        return errors + 0.5 * jnp.sum(jnp.exp(ctx.penalty.params) * w**2)

    return pair(
        {
            "loss_fn": loss,
            "tx": optax.sgd(6.0, momentum=0.9),
            "unroll_steps": 150,
            "method": mlox.Unrolled(),
        },
        {"params": jnp.full(4, -2.0)},
    )


CASES = [
    # All of it is NaN.
    Case("Adam without eps_root", zero_gradient, "EPS_ROOT", against_program),
    # 0.11 times the length.
    Case("two of 40 short steps", truncated, "TRUNCATED", against_program),
    # Right, and used by no step.
    Case("a warm-up that never ends", waiting, "WARMUP", unmoved),
    # Of length 20,000, where differences over 0.001 have 3,000.
    Case("steps that are too long", chaotic, "CHAOTIC", against_program),
]
