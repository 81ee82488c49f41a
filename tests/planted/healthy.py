"""Healthy programs whose answers are solved."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

from ..nested import GRAPHS, Program
from . import three_levels
from .case import (
    TRAIN,
    VALID,
    Built,
    Case,
    logistic,
    pair,
    ridge,
    rows,
    signs,
    squared,
    start,
)
from .loss_faults import normalized
from .proofs import against_program, hypergradient


def solved_by(solver: Any) -> Any:
    return lambda: pair({"method": mlox.Implicit(solver)})


def logistic_ridge(w: Any, batch: Any, ctx: mlox.Context) -> Any:
    decay = 0.5 * jnp.sum(jnp.exp(ctx.penalty.params) * w**2)
    return logistic(w, batch) + decay


def classify(params: Any, batch: Any, ctx: mlox.Context) -> Any:
    return logistic(ctx.fit.params, batch)


def classifier() -> Built:
    """The program of the README, started at zero."""
    return pair(
        {
            "loss_fn": logistic_ridge,
            "tx": optax.sgd(1.0),
            "unroll_steps": 200,
            "method": mlox.Implicit(mlox.CG(iterations=10)),
        },
        {"loss_fn": classify, "tx": optax.adam(0.05)},
        signs(0),
        signs(1),
    )


def weighted() -> Built:
    """Weights of the rows, a quarter of which have wrong labels."""
    x, y = signs(0)
    y = np.where(np.arange(len(y)) % 4 == 0, -y, y)

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        losses = jnp.logaddexp(0.0, -batch[1] * (batch[0] @ w))
        weights = jax.nn.sigmoid(ctx.penalty.params)
        return jnp.mean(weights * losses) + 0.05 * jnp.sum(w**2)

    return pair(
        {"loss_fn": loss, "tx": optax.sgd(1.0), "unroll_steps": 200},
        {"loss_fn": classify, "params": jnp.zeros(len(y))},
        (x, y),
        signs(1),
    )


def class_weights() -> Built:
    """Weights of three classes in a softmax regression, learned on balanced rows."""
    draw = np.random.default_rng(5)
    centers = draw.normal(size=(3, 4))

    def points(count: list[int]) -> Any:
        labels = np.repeat(np.arange(3), count)
        return centers[labels] + draw.normal(size=(len(labels), 4)), labels

    def losses(w: Any, data: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(data[0] @ w, data[1])

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        weights = jnp.exp(ctx.penalty.params)[batch[1]]
        return jnp.mean(weights * losses(w, batch)) + 0.05 * jnp.sum(w**2)

    return pair(
        {
            "loss_fn": loss,
            "params": jnp.zeros((4, 3)),
            "tx": optax.sgd(0.5, momentum=0.8),
            "unroll_steps": 200,
        },
        {
            "loss_fn": lambda params, batch, ctx: losses(ctx.fit.params, batch).mean(),
            "params": jnp.zeros(3),
        },
        points([15, 5, 2]),
        points([6, 6, 6]),
    )


def network() -> Built:
    """A small network with weight decay, trained to its minimum."""
    draw = np.random.default_rng(4).normal
    first = {"in": jnp.array(draw(size=(4, 3))), "out": jnp.array(draw(size=3))}
    error = lambda w, data: squared(w["out"], (jnp.tanh(data[0] @ w["in"]), data[1]))

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        decay = 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(w))
        return error(w, batch) + jnp.exp(ctx.penalty.params) * decay

    return pair(
        {
            "loss_fn": loss,
            "params": first,
            "tx": optax.sgd(0.3, momentum=0.9),
            "unroll_steps": 600,
        },
        {
            "loss_fn": lambda params, batch, ctx: error(ctx.fit.params, batch),
            "params": jnp.asarray(-2.5),
        },
    )


def two_lowers() -> Built:
    """Two ridge regressions on halves of the rows, whose mean forecasts."""

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        return ridge(w, batch, ctx)

    def upper_loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
        return squared(0.5 * (ctx.left.params + ctx.right.params), batch)

    lower = {"params": jnp.zeros(4), "tx": optax.sgd(0.4), "unroll_steps": 100}
    problems = [
        mlox.Problem.create(
            name="penalty",
            params=jnp.full(4, -1.0),
            tx=optax.adam(0.01),
            loss_fn=upper_loss,
        ),
        mlox.Problem.create(name="left", loss_fn=loss, **lower),
        mlox.Problem.create(
            name="right", loss_fn=loss, method=mlox.Implicit(mlox.GMRES()), **lower
        ),
    ]
    engine = mlox.Engine(
        problems,
        {"penalty": ["left", "right"]},
        {"left": ["penalty"], "right": ["penalty"]},
    )
    return start(engine, "penalty", penalty=VALID, left=TRAIN, right=rows(3))


def diamond() -> Built:
    """Two problems that lead one regression, and one that leads both."""
    program = Program(GRAPHS["diamond"])
    theta = program.stationary("t")
    engine = program.engine(
        None, **{n: {"params": jnp.array(x[0])} for n, x in theta.items()}
    )
    return start(engine, "t")


def against_nested(*built: Any) -> float:
    program = Program(GRAPHS["diamond"])
    truth = program.differences("t", program.stationary("t")).ravel()
    found = hypergradient(*built)
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def smooth(method: Any) -> Any:
    """Denoise a signal towards a learned one: the Hessian is the identity."""

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        return 0.5 * jnp.sum((w - batch - jnp.tanh(ctx.penalty.params)) ** 2)

    def upper(params: Any, batch: Any, ctx: mlox.Context) -> Any:
        return 0.5 * jnp.sum((ctx.fit.params - batch) ** 2)

    return lambda: pair(
        {"loss_fn": loss, "tx": optax.sgd(1.0), "unroll_steps": 3, "method": method},
        {"loss_fn": upper, "params": jnp.full(4, 0.3)},
        np.array([0.1, -0.4, 0.2, 0.5]),
        np.array([1.0, -1.0, 0.5, 0.0]),
    )


def single_precision() -> Built:
    single = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
    return pair(
        {"params": jnp.zeros(4, jnp.float32)},
        {"params": jnp.full(4, -1.0, jnp.float32)},
        single(TRAIN),
        single(VALID),
    )


def loose_box() -> Built:
    return pair({"project": lambda w: jnp.clip(w, -5.0, 5.0)})


def box() -> Built:
    """Coefficients that must not be negative: two of four are held at zero."""
    return pair({"project": lambda w: jnp.maximum(w, 0.0)})


def ball() -> Built:
    """Slopes of a norm of at most 0.3, which is reached."""
    project = functools.partial(optax.projections.projection_l2_ball, scale=0.3)
    return pair({"project": project})


def frozen_part() -> Built:
    """A fit of which only the slopes are trained; the offset is given."""
    error = lambda w, data: squared(w["slopes"], (data[0], data[1] - w["offset"]))

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        decay = 0.5 * jnp.sum(jnp.exp(ctx.penalty.params) * w["slopes"] ** 2)
        return error(w, batch) + decay

    return pair(
        {
            "params": {"slopes": jnp.zeros(4), "offset": jnp.asarray(0.1)},
            "loss_fn": loss,
            "trainable": lambda params: {"slopes": True, "offset": False},
        },
        {"loss_fn": lambda params, batch, ctx: error(ctx.fit.params, batch)},
    )


def balanced() -> Built:
    """An upper at its optimum: two slopes that cancel."""

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        return jnp.sum(jnp.cosh(w - ctx.penalty.params) + 0.5 * w**2)

    def upper(params: Any, batch: Any, ctx: mlox.Context) -> Any:
        return jnp.sum((ctx.fit.params - 0.3) ** 2 + 0.1 * params**2)

    engine, state, batches, name = pair(
        {"loss_fn": loss}, {"loss_fn": upper, "tx": optax.sgd(0.1)}, None, None
    )
    state, _ = engine.run(state, None, 80, loggers=(), progress=False)
    return engine, state, batches, name


CASES = [
    Case("ridge regression, CG", solved_by(mlox.CG(iterations=10))),
    Case("ridge regression, the default", pair),
    Case("ridge regression, Dense", solved_by(mlox.Dense())),
    Case("ridge regression, GMRES", solved_by(mlox.GMRES(iterations=10))),
    Case("ridge regression, BiCGStab", solved_by(mlox.BiCGStab(iterations=20))),
    Case(
        "ridge regression, Neumann",
        solved_by(mlox.Neumann(iterations=30, step=0.5)),
    ),
    Case("logistic regression of the README", classifier),
    Case("weights of rows", weighted),
    Case("weights of classes", class_weights),
    Case("network with weight decay", network),
    Case("two lowers", two_lowers),
    Case("three levels", three_levels.build, None, three_levels.against_solved),
    Case(
        "three levels, the lowest judged alone",
        functools.partial(three_levels.build, price=0.0),
        None,
        functools.partial(three_levels.against_solved, price=0.0),
    ),
    Case("a diamond", diamond, None, against_nested),
    Case("finite differences", smooth(mlox.FiniteDifference(epsilon=1e-3))),
    Case("SAMA", smooth(mlox.SAMA())),
    Case("batch norm with running statistics", lambda: normalized(train=False)),
    Case("single precision", single_precision),
    Case("a projection that is not active", loose_box),
    Case("coefficients in a box", box, error=against_program),
    Case("coefficients in a ball", ball, error=against_program),
    Case("a frozen part", frozen_part),
    Case("an upper near its optimum", balanced),
]
