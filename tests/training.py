"""Small programs as people train them, and the same with something wrong.

Each is made by a function of a generator of random numbers, and trains in a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox


class Program(NamedTuple):
    """An engine with its data, and how long it trains."""

    engine: mlox.Engine
    data: dict[str, Any]
    cycles: int = 100


Draw = np.random.Generator


def regression(draw: Draw, rows: int, columns: int, noise: float = 0.3):
    """Draw inputs and targets of a linear model, with columns of unequal sizes."""
    x = draw.normal(size=(rows, columns))
    y = x @ draw.normal(size=columns) / columns**0.5 + noise * draw.normal(size=rows)
    return x, y


def classes(draw: Draw, rows: int, columns: int, flips: float = 0.1):
    """Draw inputs and labels 0 or 1, some of which are wrong."""
    x = draw.normal(size=(rows, columns))
    y = x @ draw.normal(size=columns) > 0
    return x, np.where(draw.random(rows) < flips, ~y, y).astype(float)


def split(xy, rows):
    return tuple(a[:rows] for a in xy), tuple(a[rows:] for a in xy)


def minibatches(draw: Draw, xy, size: int, count: int = 200):
    """Draw batches with replacement, as many as there are in `count`."""
    rows = [draw.integers(len(xy[0]), size=size) for _ in range(count)]
    return [tuple(a[i] for a in xy) for i in rows]


def squares(w, batch):
    return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2)


def logistic(w, batch):
    return jnp.mean(optax.sigmoid_binary_cross_entropy(batch[0] @ w, batch[1]))


def mlp(sizes, draw: Draw):
    return [
        (draw.normal(size=(a, b)) / a**0.5, np.zeros((1, b)))
        for a, b in itertools.pairwise(sizes)
    ]


def forward(params, x):
    for w, b in params[:-1]:
        x = jnp.tanh(x @ w + b)
    w, b = params[-1]
    return (x @ w + b)[:, 0]


def mlp_loss(params, batch):
    return 0.5 * jnp.mean((forward(params, batch[0]) - batch[1]) ** 2)


def decay(u, w):
    """Half of a weighted sum of squares, with the weights exp(u)."""
    penalty = lambda a, b: jnp.sum(jnp.exp(a) * b**2)
    return 0.5 * sum(jax.tree.leaves(jax.tree.map(penalty, u, w)))


def pair(
    lower: Callable[..., Any],
    upper: Callable[..., Any],
    w: Any,
    u: Any,
    steps: int,
    tx: Any,
    up: Any = None,
    method: Any = None,
    **options: Any,
) -> mlox.Engine:
    """Make a lower with the cost lower(w, batch, u), and an upper likewise."""
    w, u = jax.tree.map(jnp.asarray, (w, u))
    above = options.pop("above", {})
    down = mlox.Problem.create(
        name="fit",
        params=w,
        tx=tx,
        unroll_steps=steps,
        method=method,
        loss_fn=lambda p, batch, ctx: lower(p, batch, ctx.outer.params),
        **options,
    )
    top = mlox.Problem.create(
        name="outer",
        params=u,
        tx=optax.adam(0.02) if up is None else up,
        loss_fn=lambda p, batch, ctx: upper(ctx.fit.params, batch, p),
        **above,
    )
    return mlox.Engine([top, down], {"outer": ["fit"]}, {"fit": ["outer"]})


CG5 = mlox.Implicit(mlox.CG(iterations=5))
CG10 = mlox.Implicit(mlox.CG(iterations=10))


def ridge(draw, steps=20, tx=None, size=None, columns=20, start=-2.0, **options):
    """The weight decay of a linear model."""
    xy, val = split(regression(draw, 120, columns), 80)
    engine = pair(
        lambda w, b, u: squares(w, b) + decay(u, w),
        lambda w, b, u: squares(w, b),
        np.zeros(columns),
        start * np.ones(options.pop("groups", 1)),
        steps,
        optax.sgd(0.3) if tx is None else tx,
        **options,
    )
    data = [xy] if size is None else minibatches(draw, xy, size)
    return Program(engine, {"fit": data, "outer": [val]})


def logreg(draw, steps=10, tx=None, size=16, columns=50, up_size=None, **options):
    """The weight decay of each column of a logistic regression."""
    xy, val = split(classes(draw, 400, columns), 300)
    engine = pair(
        lambda w, b, u: logistic(w, b) + decay(u, w),
        lambda w, b, u: logistic(w, b),
        np.zeros(columns),
        -4.0 * np.ones(columns),
        steps,
        optax.sgd(0.5) if tx is None else tx,
        **options,
    )
    vals = [val] if up_size is None else minibatches(draw, val, up_size)
    return Program(engine, {"fit": minibatches(draw, xy, size), "outer": vals})


def network(draw, steps=10, tx=None, size=32, method=CG5, width=16, **options):
    """The weight decay of each layer of a network with tanh."""
    x = draw.normal(size=(300, 5))
    y = np.sin(x[:, 0]) + 0.5 * x[:, 1] * x[:, 2] + 0.1 * draw.normal(size=300)
    xy, val = split((x, y), 200)
    w = mlp((5, width, 1), draw)
    u = [(np.full((1, 1), -5.0), np.full((1, 1), -9.0)) for _ in w]
    engine = pair(
        lambda w, b, u: mlp_loss(w, b) + decay(u, w),
        lambda w, b, u: mlp_loss(w, b),
        w,
        u,
        steps,
        optax.adam(0.01) if tx is None else tx,
        method=method,
        **options,
    )
    return Program(engine, {"fit": minibatches(draw, xy, size), "outer": [val]})


def dropout(draw, steps=10, tx=None, rate=0.2):
    """A network with dropout, whose penalty is learned."""
    program = network(draw)
    x_y = program.data

    def loss(p, batch, ctx):
        (w1, b1), (w2, b2) = p
        hidden = jnp.tanh(batch[0] @ w1 + b1)
        keep = jax.random.bernoulli(ctx.rng, 1 - rate, hidden.shape)
        out = (jnp.where(keep, hidden / (1 - rate), 0.0) @ w2 + b2)[:, 0]
        u = ctx.outer.params
        return 0.5 * jnp.mean((out - batch[1]) ** 2) + decay(u, p)

    top, down = program.engine.problems
    down = mlox.Problem.create(
        name="fit",
        params=down.params,
        tx=optax.adam(0.01) if tx is None else tx,
        loss_fn=loss,
        rng=0,
        method=CG5,
        unroll_steps=steps,
    )
    engine = mlox.Engine([top, down], {"outer": ["fit"]}, {"fit": ["outer"]})
    return Program(engine, x_y)


def batch_norm(draw, steps=10, tx=None):
    """A network that normalizes by its batch, and keeps running statistics."""
    program = network(draw)

    def loss(p, batch, ctx):
        (w1, b1), (w2, b2) = p
        hidden = batch[0] @ w1 + b1
        mean, var = hidden.mean(0), hidden.var(0)
        hidden = jnp.tanh((hidden - mean[None]) * jax.lax.rsqrt(var[None] + 1e-3))
        out = (hidden @ w2 + b2)[:, 0]
        now = jnp.stack([mean, var])
        return {
            "loss": 0.5 * jnp.mean((out - batch[1]) ** 2) + decay(ctx.outer.params, p),
            "model_state": 0.9 * ctx.model_state + 0.1 * now,
        }

    def upper(p, batch, ctx):
        (w1, b1), (w2, b2) = ctx.fit.params
        mean, var = ctx.fit.model_state
        hidden = batch[0] @ w1 + b1
        hidden = jnp.tanh((hidden - mean[None]) * jax.lax.rsqrt(var[None] + 1e-3))
        return 0.5 * jnp.mean(((hidden @ w2 + b2)[:, 0] - batch[1]) ** 2)

    top, down = program.engine.problems
    down = mlox.Problem.create(
        name="fit",
        params=down.params,
        tx=optax.adam(0.01) if tx is None else tx,
        loss_fn=loss,
        model_state=jnp.stack([jnp.zeros(16), jnp.ones(16)]),
        method=CG5,
        unroll_steps=steps,
    )
    top = mlox.Problem.create(
        name="outer", params=top.params, tx=optax.adam(0.02), loss_fn=upper
    )
    engine = mlox.Engine([top, down], {"outer": ["fit"]}, {"fit": ["outer"]})
    return Program(engine, program.data)


def reweighting(draw, steps=1, tx=None, size=16, damp=1e-2):
    """A weight for each example, where labels of a third are wrong."""
    x, y = classes(draw, 200, 10, flips=0.0)
    wrong = np.where(np.arange(200) % 3 == 0, 1 - y, y)
    val = classes(draw, 1, 10)
    val = (x[:60], y[:60])
    index = np.arange(200)

    def lower(w, b, u):
        losses = optax.sigmoid_binary_cross_entropy(b[0] @ w, b[1])
        weights = jax.nn.sigmoid(u[b[2]])
        return jnp.mean(weights * losses) + 0.5 * damp * jnp.sum(w**2)

    engine = pair(
        lower,
        lambda w, b, u: logistic(w, b),
        np.zeros(10),
        np.zeros(200),
        steps,
        optax.sgd(0.5) if tx is None else tx,
        optax.adam(0.05),
        CG10,
    )
    data = minibatches(draw, (x, wrong, index), size)
    return Program(engine, {"fit": data, "outer": [val]})


def imaml(draw, steps=16, rate=0.3, strength=1.0, tasks=4, size=10):
    """iMAML: tasks pulled to an initialization that is learned."""
    weights = 1.0 + 0.3 * draw.normal(size=(tasks, 1, 8))

    def batch():
        x = draw.normal(size=(tasks, size, 8))
        return x, np.einsum("tnd,tkd->tn", x, weights) + 0.1 * draw.normal(
            size=(tasks, size)
        )

    def loss(w, b, ctx):
        near = 0.5 * strength * jnp.sum((w - ctx.start.params) ** 2)
        return squares(w, b) + near

    start = mlox.Problem.create(
        name="start",
        params=jnp.zeros(8),
        tx=optax.adam(0.02),
        loss_fn=lambda p, b, ctx: jnp.mean(jax.vmap(squares)(ctx.fit.params, b)),
    )
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.zeros(8),
        tasks=tasks,
        tx=optax.sgd(rate),
        loss_fn=loss,
        unroll_steps=steps,
        method=CG5,
        reset=lambda p, ctx: ctx.start.params,
    )
    engine = mlox.Engine([start, fit], {"start": ["fit"]}, {"fit": ["start"]})
    support = [b for b in (batch() for _ in range(20)) for _ in range(steps)]
    return Program(engine, {"fit": support, "start": [batch() for _ in range(20)]})


def two_lowers(draw, steps=(10, 10), rates=(0.3, 0.3)):
    """Two linear models that share a weight decay."""
    sets = [split(regression(draw, 100, 10), 60) for _ in rates]

    def lower(p, b, ctx):
        return squares(p, b) + decay(ctx.outer.params, p)

    fits = [
        mlox.Problem.create(
            name=f"fit{i}",
            params=jnp.zeros(10),
            tx=optax.sgd(rate),
            loss_fn=lower,
            unroll_steps=count,
        )
        for i, (rate, count) in enumerate(zip(rates, steps, strict=True))
    ]
    names = [p.name for p in fits]
    outer = mlox.Problem.create(
        name="outer",
        params=jnp.full(1, -2.0),
        tx=optax.adam(0.02),
        loss_fn=lambda p, b, ctx: (
            squares(ctx.fit0.params, b[0]) + squares(ctx.fit1.params, b[1])
        ),
    )
    engine = mlox.Engine(
        [outer, *fits], {"outer": names}, {n: ["outer"] for n in names}
    )
    data: dict[str, Any] = {n: [s[0]] for n, s in zip(names, sets, strict=True)}
    return Program(engine, {**data, "outer": [tuple(s[1] for s in sets)]})


def three_levels(draw, steps=20, rate=0.3, above=4, middle=0.05):
    """The decay of a decay: a hyperparameter of a hyperparameter."""
    train, rest = split(regression(draw, 150, 8), 60)
    val, test = split(rest, 45)
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.zeros(8),
        tx=optax.sgd(rate),
        unroll_steps=steps,
        loss_fn=lambda p, b, ctx: squares(p, b) + decay(ctx.decay.params, p),
    )
    mid = mlox.Problem.create(
        name="decay",
        params=jnp.full(8, -2.0),
        tx=optax.sgd(middle),
        unroll_steps=above,
        loss_fn=lambda p, b, ctx: (
            squares(ctx.fit.params, b)
            + 0.5 * jnp.exp(ctx.prior.params[0]) * jnp.sum((p + 2.0) ** 2)
        ),
    )
    top = mlox.Problem.create(
        name="prior",
        params=jnp.zeros(1),
        tx=optax.sgd(0.1),
        loss_fn=lambda p, b, ctx: squares(ctx.fit.params, b),
    )
    engine = mlox.Engine(
        [top, mid, fit],
        {"prior": ["decay"], "decay": ["fit"]},
        {"fit": ["decay", "prior"], "decay": ["prior"]},
    )
    return Program(engine, {"fit": [train], "decay": [val], "prior": [test]}, 80)


def features(draw, steps=10, rate=0.5):
    """A linear head on features that the upper learns."""
    x = draw.normal(size=(240, 6))
    y = np.tanh(x[:, 0] * x[:, 1]) + 0.1 * draw.normal(size=240)
    xy, val = split((x, y), 160)
    (w, b), _ = mlp((6, 12, 1), draw)
    embed = lambda u, x: jnp.tanh(x @ u[0] + u[1])
    engine = pair(
        lambda w, b, u: squares(w, (embed(u, b[0]), b[1])) + 0.05 * jnp.sum(w**2),
        lambda w, b, u: squares(w, (embed(u, b[0]), b[1])),
        np.zeros(12),
        (w, b),
        steps,
        optax.sgd(rate),
        optax.adam(0.01),
        CG10,
    )
    return Program(engine, {"fit": minibatches(draw, xy, 64), "outer": [val]})


def boxed(draw):
    """A lower that is held within a box, which is active at its answer."""
    return ridge(
        draw, project=lambda w: jax.tree.map(lambda a: jnp.clip(a, -0.05, 0.05), w)
    )


def diverging(draw):
    """A lower whose step is 1 % too large: it moves away by 4 % in each cycle."""
    seed = draw.integers(100)
    [(x, _)] = ridge(np.random.default_rng(seed)).data["fit"]
    curvature = np.linalg.eigvalsh(x.T @ x / len(x))[-1] + np.exp(-5.0)
    rate = 2.01 / curvature
    return ridge(np.random.default_rng(seed), 4, optax.sgd(rate), start=-5.0)


CLIP = optax.chain(optax.clip_by_global_norm(0.003), optax.sgd(0.3))

HEALTHY: dict[str, Callable[[Draw], Program]] = {
    "ridge, full batch": ridge,
    "ridge, momentum": lambda d: ridge(d, 10, optax.sgd(0.1, momentum=0.9)),
    "ridge, a decay each, Neumann": lambda d: ridge(
        d,
        groups=20,
        up=optax.sgd(0.1),
        method=mlox.Implicit(mlox.Neumann(iterations=40, step=0.3)),
    ),
    "ridge, Adam with a schedule": lambda d: ridge(
        d, 10, optax.adam(optax.cosine_decay_schedule(0.1, 1500, 0.05))
    ),
    "ridge, batches of 8": lambda d: ridge(d, 10, optax.sgd(0.1), 8, 10),
    "ridge, warm-up": lambda d: ridge(d, warmup_steps=300),
    "ridge, batches of 40": lambda d: ridge(d, 20, optax.sgd(0.3), 40),
    "logistic, batches of 8": lambda d: logreg(d, 10, optax.sgd(0.3), 8, 10),
    "logistic, batches of 64": lambda d: logreg(d, 10, optax.sgd(1.0), 64, 20),
    "logistic, 1000 unknowns": lambda d: logreg(
        d, 10, optax.sgd(0.3), 64, 1000, method=CG10
    ),
    "logistic, Adam, small upper batches": lambda d: logreg(
        d, 10, optax.adam(0.01), 32, 30, 32
    ),
    "network, Adam": network,
    "network, SGD with momentum": lambda d: network(
        d, 10, optax.sgd(0.05, momentum=0.9)
    ),
    "network, wide": lambda d: network(d, 5, optax.adam(0.003), 64, width=64),
    "network, dropout": dropout,
    "network, batch norm": batch_norm,
    "reweighting, one step": reweighting,
    "reweighting, many steps": lambda d: reweighting(d, 10),
    "iMAML": imaml,
    "iMAML, five steps": lambda d: imaml(d, 5, 0.05),
    "two lowers": two_lowers,
    "three levels": three_levels,
    "features": features,
}

SICK: dict[str, Callable[[Draw], Program]] = {
    "small steps": lambda d: ridge(d, 4, optax.sgd(1e-3)),
    "one small step, batches": lambda d: logreg(d, 1, optax.sgd(2e-3), 64, 20),
    "clipped": lambda d: ridge(d, 4, CLIP),
    "diverges slowly": diverging,
    "momentum lags": lambda d: ridge(d, 2, optax.sgd(1e-4, momentum=0.98)),
    "Adam, small rate": lambda d: ridge(d, 2, optax.adam(2e-5)),
    "network, small steps": lambda d: network(d, 2, optax.sgd(1e-4)),
    "schedule ends too early": lambda d: ridge(
        d, 10, optax.sgd(optax.exponential_decay(0.1, 5, 0.3))
    ),
    "reset, weakly tied": lambda d: imaml(d, 8, 0.02, 0.01, size=40),
    "one of two lowers lags": lambda d: two_lowers(d, (10, 10), (0.3, 3e-4)),
    "small steps, batches of 64": lambda d: logreg(d, 4, optax.sgd(1e-3), 64, 20),
    "small steps after a warm-up": lambda d: ridge(
        d, 4, optax.sgd(1e-3), warmup_steps=40
    ),
    "reweighting, small steps": lambda d: reweighting(d, 1, optax.sgd(1e-3), 64),
    "three levels, lowest lags": lambda d: three_levels(d, 4, 1e-3),
    "wrong sign": lambda d: ridge(d, 4, optax.sgd(-1e-3)),
}
