"""mlox on the job of `_solved`."""

from __future__ import annotations

import jax
import optax
from _side import Given, Side
from peers import _solved, _steps

import mlox


def build(given: Given, settings: _steps.Settings) -> Side:
    """Build the job."""
    cost, loss = _solved.losses(given)
    first = _solved.start(given)
    upper = mlox.Problem.create(
        name="upper",
        params=first["upper"],
        tx=_solved.UPPER,
        loss_fn=lambda params, batch, ctx: loss(ctx.lower.params),
    )
    lower = mlox.Problem.create(
        name="lower",
        params=first["lower"],
        tx=optax.sgd(settings["rate"]),
        loss_fn=lambda params, batch, ctx: cost(params, ctx.upper.params),
        method=mlox.Implicit(mlox.CG(settings["products"], settings["tolerance"])),
        unroll_steps=settings["iterations"],
        reset=lambda params, ctx: jax.numpy.zeros_like(params),
    )
    edges = {"upper": ["lower"]}, {"lower": ["upper"]}
    engine = mlox.Engine([upper, lower], *edges, metrics="none")
    read = lambda state, _: {name: state[name].params for name in first}
    batches = {"upper": None, "lower": None}
    return _steps.side(engine.step, engine.init(), batches, settings, read)
