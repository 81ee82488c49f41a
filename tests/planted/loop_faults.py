"""Faults of inner loops that are differentiated, and of schedules."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

from .case import TRAIN, Built, Case, pair, squared, start
from .proofs import against_program, unmoved


def zero_gradient() -> Built:
    """Adam with eps_root = 0, and a feature that is zero in all rows."""
    absent = np.array([[1.0, 1.0, 1.0, 0.0]])
    return pair(
        {"tx": optax.adam(0.1), "unroll_steps": 30, "method": mlox.Unrolled()},
        train=(TRAIN[0] * absent, TRAIN[1]),
    )


def masked_task() -> Built:
    """Three tasks, one of them masked out, with slopes clipped by their norm."""
    draw = np.random.default_rng(0).normal
    x, mask = draw(size=(3, 6, 2)), np.array([1.0, 1.0, 0.0])

    def task_loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        return batch[2] * squared(w, batch[:2])

    def init_loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
        return jnp.mean(batch[2] * jax.vmap(squared)(ctx.fits.params, batch[:2]))

    problems = [
        mlox.Problem.create(
            name="init", params=jnp.zeros(2), tx=optax.adam(0.01), loss_fn=init_loss
        ),
        mlox.Problem.create(
            name="fits",
            params=jnp.zeros(2),
            tx=optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
            loss_fn=task_loss,
            method=mlox.Unrolled(),
            unroll_steps=4,
            tasks=3,
            reset=lambda params, ctx: ctx.init.params,
        ),
    ]
    engine = mlox.Engine(problems, {"init": ["fits"]}, {"fits": ["init"]})
    batch = x, x.sum(axis=2), mask
    return start(engine, "init", init=batch, fits=batch)


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
    # All of it is NaN.
    Case("a masked task", masked_task, "EPS_ROOT", against_program),
    # 0.11 times the length.
    Case("two of 40 short steps", truncated, "TRUNCATED", against_program),
    # Right, and used by no step.
    Case("a warm-up that never ends", waiting, "WARMUP", unmoved),
    # Of length 20,000, where differences over 0.001 have 3,000.
    Case("steps that are too long", chaotic, "CHAOTIC", against_program),
]
