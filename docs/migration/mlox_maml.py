"""MAML: a start from which five steps of Adam fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

jax.config.update("jax_enable_x64", True)
draw = np.random.default_rng(0)


def tasks(count, points=20):  # sinusoids
    height, phase = draw.uniform(0.5, 2.0, (2, count, 1, 1))
    x = draw.uniform(-3.0, 3.0, (count, points, 1))
    y = height * np.sin(x + phase)
    return x, y


params = {}
for layer, size in (("1", (1, 20)), ("2", (20, 1))):
    weight = draw.normal(size=size) / size[0] ** 0.5
    params[f"weight{layer}"] = weight
    params[f"bias{layer}"] = np.zeros(size[1])


def net(params, x):
    x = x @ params["weight1"] + params["bias1"]
    return jnp.tanh(x) @ params["weight2"] + params["bias2"]


def start_loss(params, batch, ctx):
    x, y = batch
    return jnp.mean((ctx.fit(x) - y) ** 2)  # of all tasks


def fit_loss(params, batch, ctx):  # of one task
    x, y = batch
    return jnp.mean((net(params, x) - y) ** 2)


start = mlox.Problem.create(
    name="start",
    params=params,
    tx=optax.adam(0.01),
    loss_fn=start_loss,
)
fit = mlox.Problem.create(
    name="fit",
    params=params,
    tx=optax.adam(0.05, eps_root=1e-16),
    loss_fn=fit_loss,
    apply_fn=net,
    reset=lambda params, ctx: ctx.start.params,
    method=mlox.Unrolled(),
    unroll_steps=5,
    tasks=8,
)
engine = mlox.Engine(
    [start, fit], u2l={start: [fit]}, l2u={fit: [start]}
)
state, step = engine.init(), engine.compile()
for _ in range(20):
    x, y = tasks(8)
    support = x[:, :10], y[:, :10]
    query = x[:, 10:], y[:, 10:]
    data = {"fit": [support] * 5, "start": [query]}
    state, metrics = step(
        state,
        engine.stack({k: iter(v) for k, v in data.items()}),
    )

params = state["start"].params
names = "weight1", "bias1", "weight2", "bias2"
sums = [params[name].sum() for name in names]
print(metrics["start/loss"][0], *sums)
