"""Learn one L2 penalty for each feature."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

jax.config.update("jax_enable_x64", True)
draw = np.random.default_rng(0)
x = draw.normal(size=(80, 5))
noise = draw.normal(size=80)
y = x @ np.array([2.0, 1.0, 0.5, 0.0, 0.0]) + noise
train, valid = (x[:40], y[:40]), (x[40:], y[40:])


def error(w, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2)


def fit_loss(w, batch, ctx):
    l2 = jnp.exp(ctx.penalty.params)
    return error(w, batch) + jnp.sum(l2 * w**2)


def penalty_loss(log_l2, batch, ctx):
    return error(ctx.fit.params, batch)


def learn(method):
    penalty = mlox.Problem.create(
        name="penalty",
        params=jnp.full(5, -3.0),
        tx=optax.sgd(1.0),
        loss_fn=penalty_loss,
    )
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.zeros(5),
        tx=optax.sgd(0.1),
        loss_fn=fit_loss,
        method=method,
        unroll_steps=50,
    )
    engine = mlox.Engine(
        [penalty, fit],
        u2l={penalty: [fit]},
        l2u={fit: [penalty]},
    )
    state, _ = engine.run(
        engine.init(),
        {"penalty": [valid], "fit": [train]},
        train_iters=20,
        loggers=(),
    )
    return state["penalty"].params


neumann = learn(
    mlox.Implicit(mlox.Neumann(iterations=100, step=0.1))
)
cg = learn(mlox.Implicit(mlox.CG(iterations=5)))
print(*neumann, *cg)
