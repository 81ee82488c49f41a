"""The smallest problems and engines that something can be wrong with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

ZEROS = jnp.zeros(2, jnp.float32)
SGD = optax.sgd(0.1)
BATCH = np.ones(2, np.float32)
UNROLL = 2
GOOD = {"penalty": None, "fit": np.ones((UNROLL, 2), np.float32)}


def fit_loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
    return jnp.sum((params - batch) ** 2) + jnp.sum(ctx.penalty.params * params**2)


def penalty_loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
    return jnp.sum((ctx.fit.params - 2) ** 2)


def alone_loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
    return jnp.sum((params - 1) ** 2)


def clip_smoothly(limit: float) -> optax.GradientTransformation:
    """Clip by the norm of a gradient, with a derivative at a zero gradient, too."""

    def clip(gradient: Any, _: Any) -> Any:
        norm = jnp.sqrt(optax.tree.norm(gradient, squared=True) + 1e-16)
        return optax.tree.scale(jnp.minimum(1.0, limit / norm), gradient)

    return optax.stateless(clip)


def problem(name: Any = "fit", **parts: Any) -> mlox.Problem:
    """Make a problem that reads no other, with some parts of its own."""
    given = {"params": ZEROS, "tx": SGD, "loss_fn": alone_loss, **parts}
    return mlox.Problem.create(name=name, **given)


def single(**parts: Any) -> mlox.Engine:
    return mlox.Engine([problem(**parts)])


def pair(
    fit: Mapping[str, Any] | None = None,
    penalty: Mapping[str, Any] | None = None,
    **options: Any,
) -> mlox.Engine:
    """Make an engine of two problems: "fit" answers to "penalty"."""
    lower = {"loss_fn": fit_loss, "unroll_steps": UNROLL, **(fit or {})}
    upper = {"loss_fn": penalty_loss, **(penalty or {})}
    return mlox.Engine(
        [problem("penalty", **upper), problem("fit", **lower)],
        u2l={"penalty": ["fit"]},
        l2u={"fit": ["penalty"]},
        **options,
    )


def trace(engine: mlox.Engine, batches: Any = None) -> Any:
    """Trace a step, which is where a loss is seen first, and compile nothing."""
    batches = (
        (GOOD if len(engine.names) > 1 else {"fit": None})
        if (batches is None)
        else batches
    )
    return jax.eval_shape(engine.step, engine.init(), batches)


def run_engine(engine: mlox.Engine, data: Any = None, **options: Any) -> Any:
    """Run a few cycles in silence."""
    options = {"train_iters": 3, "log_every": 1, "loggers": (), **options}
    return engine.run(engine.init(), data, progress=False, **options)
