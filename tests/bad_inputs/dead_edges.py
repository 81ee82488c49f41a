"""Edges that are declared, and that carry nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import mlox

from ..small import alone_loss, fit_loss, pair, penalty_loss, problem, trace
from .case import Case, table

stop = jax.lax.stop_gradient


def _fit(weigh: Any) -> Any:
    """Trace a fit whose loss gets what `weigh` makes of the penalty's parameters."""

    def loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
        return alone_loss(params, batch, ctx) + weigh(params, ctx.penalty.params)

    return trace(pair({"loss_fn": loss}))


def _penalty(loss: Any) -> Any:
    return trace(pair(penalty={"loss_fn": loss}))


def _reversed() -> Any:
    problems = [
        problem("penalty", loss_fn=penalty_loss),
        problem("fit", loss_fn=fit_loss),
    ]
    engine = mlox.Engine(problems, {"fit": ["penalty"]}, {"penalty": ["fit"]})
    return trace(engine, {"penalty": None, "fit": jnp.ones((1, 2), jnp.float32)})


def _unread() -> Any:
    engine = mlox.Engine([problem("a"), problem("b")], reads={"a": ["b"]})
    return trace(engine, {"a": None, "b": None})


def cases() -> list[Case]:
    return table(
        "Engine: edges that carry nothing",
        [
            (
                "an upper that is not read",
                lambda _: _fit(lambda fit, penalty: 0.0),
                UserWarning,
                r"'fit' does not read.*'penalty'.*u2l={'penalty': \['fit'\]}.*Read",
            ),
            (
                "an upper under stop_gradient",
                lambda _: _fit(lambda fit, penalty: jnp.sum(stop(penalty) * fit)),
                UserWarning,
                "'fit' reads.*'penalty'.*no derivative.*Detached",
            ),
            (
                "an upper that is added",
                lambda _: _fit(lambda fit, penalty: jnp.sum(penalty**2)),
                UserWarning,
                "'fit' depends.*'penalty' by an added term.*weight",
            ),
            (
                "an answer that is not read",
                lambda _: _penalty(alone_loss),
                UserWarning,
                r"'penalty' does not read.*'fit'.*l2u={'fit': \['penalty'\]}.*Read",
            ),
            (
                "an answer under stop_gradient",
                lambda _: _penalty(lambda p, b, ctx: jnp.sum(stop(ctx.fit.params))),
                UserWarning,
                "'penalty' reads.*'fit'.*no derivative.*Detached",
            ),
            (
                "upper and lower exchanged",
                lambda _: _reversed(),
                UserWarning,
                "'penalty' does not depend on.*'penalty' itself.*u2l={upper:",
            ),
            (
                "a constant that is not read",
                lambda _: _unread(),
                UserWarning,
                r"'a' does not read.*'b'.*reads={'a': \['b'\]}.*drop it from reads",
            ),
        ],
    )
