"""Learn the learning rate of ten steps with momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

jax.config.update("jax_enable_x64", True)
draw = np.random.default_rng(0)
x = draw.normal(size=(40, 5))
y = x @ np.arange(5.0) / 5


def error(w, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2)


def read_rate(ctx):
    return {"learning_rate": jnp.exp(ctx.rate.params)}


rate = mlox.Problem.create(
    name="rate",
    params=jnp.array(-3.0),
    tx=optax.sgd(0.5),
    loss_fn=lambda log_rate, batch, ctx: error(
        ctx.fit.params, batch
    ),
)
fit = mlox.Problem.create(
    name="fit",
    params=jnp.zeros(5),
    tx=optax.inject_hyperparams(optax.sgd)(
        learning_rate=1.0, momentum=0.5
    ),
    loss_fn=lambda w, batch, ctx: error(w, batch),
    hyperparams=read_rate,
    reset=lambda w, ctx: jnp.zeros(5),
    method=mlox.Unrolled(),
    unroll_steps=10,
)
engine = mlox.Engine(
    [rate, fit], u2l={rate: [fit]}, l2u={fit: [rate]}
)
data = {
    "fit": [(x[:20], y[:20])],
    "rate": [(x[20:], y[20:])],
}
state, history = engine.run(
    engine.init(),
    data,
    train_iters=20,
    log_every=1,
    loggers=(),
)

print(history["rate/loss"][-1], state["rate"].params)
