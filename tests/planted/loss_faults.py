"""Faults of losses."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox
import mlox.flax

from . import proofs
from .case import (
    TRAIN,
    VALID,
    Built,
    Case,
    logistic,
    pair,
    ridge,
    signs,
    squared,
    start,
)
from .proofs import against_program, unstable


def drop(key: Any, x: Any) -> Any:
    kept = jax.random.bernoulli(key, 0.5, x.shape)
    return jnp.where(kept, 2.0 * x, 0.0)


def counted_masks() -> Built:
    """Dropout with a key that the loss counts up itself whenever it is traced."""
    keys = itertools.count()

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        x = drop(jax.random.key(next(keys)), jnp.asarray(batch[0]))
        return ridge(w, (x, batch[1]), ctx)

    return pair({"loss_fn": loss})


def drawn_noise() -> Built:
    """Noise on the features from a generator of NumPy."""
    generator = np.random.default_rng(0)

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        x = batch[0] + 0.5 * generator.normal(size=batch[0].shape)
        return ridge(w, (x, batch[1]), ctx)

    return pair({"loss_fn": loss})


class Net(nn.Module):
    """A linear model of normalized features."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        norm = nn.BatchNorm(not train, momentum=0.8, use_scale=False, use_bias=False)
        return nn.Dense(1)(norm(x))[:, 0]


def normalized(train: bool) -> Built:
    """Build a network with batch norm; the upper evaluates it on six rows."""
    net = Net()
    first = TRAIN[0].astype(np.float32)
    variables = proofs.widened(net.init(jax.random.key(0), first, train=False))

    def apply(variables: Any, batch: Any, train: bool) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # Flax adds numbers in float32
            found, changed = net.apply(
                variables, batch[0], train=train, mutable=["batch_stats"]
            )
        return jnp.mean((found - batch[1]) ** 2), changed

    def fit_loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
        loss, changed = apply({"params": params, **ctx.model_state}, batch, True)
        decay = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        loss += 0.5 * jnp.exp(ctx.penalty.params) * decay
        return {"loss": loss, "model_state": changed}

    def penalty_loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
        variables = {"params": ctx.fit.params, **ctx.fit.model_state}
        return apply(variables, batch, train)[0]

    problems = [
        mlox.Problem.create(
            name="penalty",
            params=jnp.asarray(-2.0),
            tx=optax.adam(0.01),
            loss_fn=penalty_loss,
        ),
        mlox.flax.from_linen(
            net,
            variables,
            name="fit",
            tx=optax.sgd(0.3),
            loss_fn=fit_loss,
            unroll_steps=200,
        ),
    ]
    engine = mlox.Engine(problems, {"penalty": ["fit"]}, {"fit": ["penalty"]})
    return start(engine, "penalty", penalty=(VALID[0][:6], VALID[1][:6]), fit=TRAIN)


def batch_statistics() -> Built:
    """An upper that normalizes its six rows by their own mean and variance."""
    return normalized(train=True)


def against_running_statistics(*built: Any) -> float:
    """Compare with the hypergradient of the loss that uses running statistics."""
    found, truth = (proofs.hypergradient(*b) for b in (built, normalized(train=False)))
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


SCALES = np.array([[2.0, 1.0, 0.3, 0.1]])


def low_precision() -> Built:
    """Everything in bfloat16, which keeps three digits."""
    low = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.bfloat16))
    return pair(
        {"params": low(jnp.zeros(4)), "tx": optax.sgd(0.2), "unroll_steps": 400},
        {"params": low(jnp.full(4, -4.0))},
        low((TRAIN[0] * SCALES, TRAIN[1])),
        low((VALID[0] * SCALES, VALID[1])),
    )


def kinked() -> Built:
    """A support vector machine: at its answer, rows lie on the kinks of the hinge."""

    def hinge(w: Any, data: Any) -> Any:
        return jnp.mean(jnp.maximum(0.0, 1.0 - data[1] * (data[0] @ w)))

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        return hinge(w, batch) + 0.5 * jnp.sum(jnp.exp(ctx.penalty.params) * w**2)

    tx = optax.sgd(lambda step: 1.0 / (1.0 + 0.3 * step))
    return pair(
        {"loss_fn": loss, "tx": tx, "unroll_steps": 3000},
        {"loss_fn": lambda params, batch, ctx: logistic(ctx.fit.params, batch)},
        signs(0),
        signs(1),
    )


def lasso() -> Built:
    """A penalty on absolute values; one slope is held at its kink."""

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        return squared(w, batch) + jnp.sum(jnp.exp(ctx.penalty.params) * jnp.abs(w))

    tx = optax.sgd(lambda step: 0.5 / (1.0 + 0.05 * step))
    return pair(
        {"loss_fn": loss, "tx": tx, "unroll_steps": 2000}, {"params": jnp.full(4, -1.5)}
    )


@jax.custom_vjp
def soft(x: Any) -> Any:
    return jnp.logaddexp(0.0, x)


def soft_forward(x: Any) -> Any:
    return soft(x), x


def soft_backward(x: Any, slope: Any) -> Any:
    # The slope of an earlier function, log(1 + exp(3 x)) / 3.
    return (slope * jax.nn.sigmoid(3.0 * x),)


soft.defvjp(soft_forward, soft_backward)


def soft_loss(w: Any, data: Any) -> Any:
    return jnp.mean(soft(-data[1] * (data[0] @ w)))


def stale_upper() -> Built:
    """A loss whose rule was not changed with its function, in the upper."""
    return pair(
        {
            "loss_fn": lambda w, batch, ctx: (
                logistic(w, batch) + 0.5 * jnp.sum(jnp.exp(ctx.penalty.params) * w**2)
            ),
            "tx": optax.sgd(1.0),
            "unroll_steps": 200,
        },
        {"loss_fn": lambda params, batch, ctx: soft_loss(ctx.fit.params, batch)},
        signs(0),
        signs(1),
    )


def stale_both() -> Built:
    return pair(
        {
            "loss_fn": lambda w, batch, ctx: (
                soft_loss(w, batch) + 0.5 * jnp.sum(jnp.exp(ctx.penalty.params) * w**2)
            ),
            "params": jnp.full(4, 0.5),
            "tx": optax.sgd(0.5),
            "unroll_steps": 50,
            "method": mlox.Unrolled(),
        },
        {"loss_fn": lambda params, batch, ctx: soft_loss(ctx.fit.params, batch)},
        signs(0),
        signs(1),
    )


CASES = [
    # A tenth to a third apart in two traces.
    Case("dropout with keys of its own", counted_masks, "RANDOM_LOSS", unstable),
    Case("noise of NumPy", drawn_noise, "RANDOM_LOSS", unstable),
    # 5 times off the one with running statistics.
    Case(
        "batch norm in train mode",
        batch_statistics,
        "BATCH_STATISTICS",
        against_running_statistics,
    ),
    # 22 % off the same program in float64.
    Case("everything in bfloat16", low_precision, "LOW_PRECISION"),
    # 0.67 times the length.
    Case("a support vector machine", kinked, "NOT_SMOOTH", against_program),
    # Cosine 0.69, 1.3 times the length.
    Case("absolute values", lasso, "NOT_SMOOTH", against_program),
    # Cosine 0.77, 0.4 times the length.
    Case("a stale rule in the upper", stale_upper, "CUSTOM_RULE"),
    # 0.6 times the length.
    Case("a stale rule in both", stale_both, "CUSTOM_RULE", against_program),
]
