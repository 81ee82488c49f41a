"""Faults of edges: what is declared, and what is read."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

import mlox

from .case import TRAIN, VALID, Built, Case, held_out, pair, ridge, squared, start
from .proofs import against_solved, unmoved, unresponsive, vanishing


def swapped() -> Built:
    """The arguments exchanged: "fit" leads "penalty", which does not read itself."""
    problems = [
        mlox.Problem.create(
            name="penalty",
            params=jnp.full(4, -1.0),
            tx=optax.adam(0.01),
            loss_fn=held_out,
        ),
        mlox.Problem.create(
            name="fit", params=jnp.zeros(4), tx=optax.sgd(0.5), loss_fn=ridge
        ),
    ]
    engine = mlox.Engine(problems, {"fit": ["penalty"]}, {"penalty": ["fit"]})
    return start(engine, "fit", penalty=VALID, fit=TRAIN)


def unread() -> Built:
    """A penalty of a fixed strength."""

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        return squared(w, batch) + 0.05 * jnp.sum(w**2)

    return pair({"loss_fn": loss})


def unread_answer() -> Built:
    """An upper that evaluates itself in place of the fit."""

    def loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
        return squared(params, batch)

    return pair(penalty={"loss_fn": loss})


def cut() -> Built:
    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        strength = jax.lax.stop_gradient(jnp.exp(ctx.penalty.params))
        return squared(w, batch) + 0.5 * jnp.sum(strength * w**2)

    return pair({"loss_fn": loss})


def threshold() -> Built:
    """Penalties that are on or off."""

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        on = jnp.where(ctx.penalty.params > -1.5, 0.5, 0.0)
        return squared(w, batch) + jnp.sum(on * w**2)

    return pair({"loss_fn": loss})


def cut_answer() -> Built:
    """An upper that stops the derivative at the fit."""

    def loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
        return squared(jax.lax.stop_gradient(ctx.fit.params), batch) + 0.01 * jnp.sum(
            params**2
        )

    return pair(penalty={"loss_fn": loss})


def additive() -> Built:
    """A penalty on itself, which does not move the fit."""

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        return squared(w, batch) + 0.5 * jnp.sum(jnp.exp(ctx.penalty.params))

    return pair({"loss_fn": loss})


CASES = [
    # "penalty" is never moved: the slope of its loss in its own parameters is zero.
    Case("edges the wrong way round", swapped, "EDGE_REVERSED", unmoved),
    # Zero.
    Case("a fit that reads no penalty", unread, "NOT_READ", vanishing),
    # Only the direct slope.
    Case("an upper that reads no fit", unread_answer, "NOT_READ", unresponsive),
    # Zero.
    Case("a penalty that is cut", cut, "DERIVATIVE_CUT", against_solved),
    # Zero.
    Case("a threshold", threshold, "DERIVATIVE_CUT", vanishing),
    # Cosine 0.86, 1.3 times the length.
    Case("an answer that is cut", cut_answer, "DERIVATIVE_CUT", against_solved),
    # Zero.
    Case("a penalty on itself", additive, "ADDITIVE", vanishing),
]
