"""Learn the weights of examples by a lower problem."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

jax.config.update("jax_enable_x64", True)
draw = np.random.default_rng(0)
x = draw.normal(size=(80, 5))
y = np.sign(x[:, 0])
noisy = np.where(draw.random(60) < 0.3, -y[:60], y[:60])
clean = x[60:], y[60:]


def losses(w, data):
    x, y = data
    return jnp.logaddexp(0.0, -y * (x @ w))


def fit_loss(w, batch, ctx):
    weights = jax.nn.sigmoid(ctx.weights.params)
    each = weights * losses(w, batch)
    return jnp.mean(each) + 0.01 * jnp.sum(w**2)


def weights_loss(raw, batch, ctx):
    return jnp.mean(losses(ctx.fit.params, batch))


fit = mlox.Problem.create(
    name="fit",
    params=jnp.zeros(5),
    tx=optax.sgd(1.0),
    unroll_steps=20,
    loss_fn=fit_loss,
    method=mlox.Implicit(mlox.CG()),
)
weights = mlox.Problem.create(
    name="weights",
    params=jnp.zeros(60),
    tx=optax.adam(0.1),
    loss_fn=weights_loss,
)
engine = mlox.Engine(
    [weights, fit],
    u2l={weights: [fit]},
    l2u={fit: [weights]},
)
state, history = engine.run(
    engine.init(),
    {"weights": [clean], "fit": [(x[:60], noisy)]},
    train_iters=100,
    loggers=(),
)
weights = jax.nn.sigmoid(state["weights"].params)
w = state["fit"].params
wrong = noisy != y[:60]
print(weights[wrong].mean(), weights[~wrong].mean(), *w)
