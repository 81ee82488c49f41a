"""Implicit MAML: a start that fits are pulled to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

jax.config.update("jax_enable_x64", True)
draw = np.random.default_rng(0)
x = draw.normal(size=(20, 5))
y = draw.normal(size=20)


def error(w, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ w) - y) ** 2)


def fit_loss(w, batch, ctx):
    pull = jnp.sum((w - ctx.start.params) ** 2)
    return error(w, batch) + 0.5 * pull


def start_loss(w, batch, ctx):
    return error(ctx.fit.params, batch)


start = mlox.Problem.create(
    name="start",
    params=jnp.zeros(5),
    tx=optax.sgd(0.3),
    loss_fn=start_loss,
)
fit = mlox.Problem.create(
    name="fit",
    params=jnp.zeros(5),
    tx=optax.sgd(0.3),
    loss_fn=fit_loss,
    reset=lambda w, ctx: ctx.start.params,
    method=mlox.Implicit(mlox.CG()),
    unroll_steps=50,
)
engine = mlox.Engine(
    [start, fit], u2l={start: [fit]}, l2u={fit: [start]}
)
data = {
    "fit": [(x[:10], y[:10])],
    "start": [(x[10:], y[10:])],
}
state, history = engine.run(
    engine.init(),
    data,
    train_iters=20,
    log_every=1,
    loggers=(),
)

print(history["start/loss"][-1], *state["start"].params)
