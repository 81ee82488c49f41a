"""Losses and other functions of problems that do not do what they should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _case import Case, of_area
from _small import ZEROS, alone, pair, traced

import mlox

Loss = Callable[[Any, Any, mlox.Context], Any]


def cases() -> list[Case]:
    return [*_contexts(), *_returned(), *_states(), *_functions(), *_methods()]


def _fit(loss: Loss, **parts: Any) -> Any:
    return traced(pair({"loss_fn": loss, **parts}))


def _contexts() -> list[Case]:
    return of_area(
        "Losses: what they read",
        [
            (
                "a problem that is not declared",
                lambda _: traced(alone(loss_fn=lambda p, b, ctx: ctx.penalty.params)),
            ),
            (
                "a misspelt neighbour",
                lambda _: _fit(lambda p, b, ctx: ctx["penalti"].params),
            ),
            (
                "a neighbour's apply_fn that it lacks",
                lambda _: _fit(lambda p, b, ctx: ctx.penalty(b)),
            ),
            (
                "a neighbour's attribute that does not exist",
                lambda _: _fit(lambda p, b, ctx: ctx.penalty.weights),
            ),
            (
                "a batch where there is none",
                lambda _: traced(alone(loss_fn=lambda p, b, ctx: jnp.sum(p - b))),
            ),
            (
                "ctx.rng where there is none",
                lambda _: traced(
                    alone(loss_fn=lambda p, b, ctx: jax.random.normal(ctx.rng))
                ),
            ),
            (
                "ctx.model_state where there is none",
                lambda _: traced(
                    alone(loss_fn=lambda p, b, ctx: ctx.model_state["mean"])
                ),
            ),
            (
                "params by a wrong key",
                lambda _: traced(
                    alone(params={"w": ZEROS}, loss_fn=lambda p, b, ctx: p["v"].sum())
                ),
            ),
            (
                "shapes that do not go together",
                lambda _: traced(
                    alone(loss_fn=lambda p, b, ctx: jnp.sum(p @ jnp.ones((3, 2))))
                ),
            ),
        ],
    )


def _assigns(params: Any, batch: Any, ctx: Any) -> Any:
    ctx.step = 0


def _returned() -> list[Case]:
    def returns(found: Callable[[Any], Any]) -> Any:
        return traced(alone(loss_fn=lambda params, batch, ctx: found(params)))

    return of_area(
        "Losses: what they return",
        [
            ("a vector", lambda _: returns(lambda p: p**2)),
            ("an integer", lambda _: returns(lambda p: jnp.int32(3))),
            ("None", lambda _: returns(lambda p: None)),
            ("a pair (loss, aux)", lambda _: returns(lambda p: (p[0], {"a": p[1]}))),
            ("a string", lambda _: returns(lambda p: "low")),
            ("a dict without 'loss'", lambda _: returns(lambda p: {"error": p[0]})),
            (
                "a dict for a metric",
                lambda _: returns(lambda p: {"loss": p[0], "parts": {"a": p[1]}}),
            ),
            (
                "a string for a metric",
                lambda _: returns(lambda p: {"loss": p[0], "kind": "ridge"}),
            ),
            (
                "two metrics of one name",
                lambda _: returns(lambda p: {"loss": p[0], 1: p[1], "1": p[0]}),
            ),
            (
                "a metric called as a solver's report",
                lambda _: traced(
                    pair(
                        {"method": mlox.Implicit(mlox.CG())},
                        {
                            "loss_fn": lambda p, b, ctx: {
                                "loss": jnp.sum(ctx.fit.params**2),
                                "fit/residual": 0.0,
                            }
                        },
                    )
                ),
            ),
        ],
    )


def _states() -> list[Case]:
    def states(found: Any, state: Any = None) -> Any:
        def loss(params: Any, batch: Any, ctx: Any) -> Any:
            return {"loss": jnp.sum(params**2), "model_state": found}

        return traced(alone(loss_fn=loss, model_state=state))

    mean = {"mean": ZEROS}
    return of_area(
        "Losses: model_state",
        [
            ("one where there was none", lambda _: states(mean)),
            ("another shape", lambda _: states({"mean": ZEROS[:1]}, mean)),
            ("a string in it", lambda _: states({"mean": "zero"}, mean)),
        ],
    )


def _functions() -> list[Case]:
    def hooked(**parts: Any) -> Any:
        return traced(pair(parts))

    def batched(**parts: Any) -> Any:
        return traced(pair(parts), {"penalty": None, "fit": None})

    def raises(*_: Any) -> Any:
        raise KeyError("scale")

    return of_area(
        "sample, reset, project",
        [
            (
                "sample reads an undeclared name",
                lambda _: batched(sample=lambda p, ctx: ctx.noise.params),
            ),
            ("sample returns a string", lambda _: batched(sample=lambda p, c: "batch")),
            ("sample returns None", lambda _: batched(sample=lambda p, ctx: None)),
            ("sample raises", lambda _: batched(sample=raises)),
            ("sample with one parameter", lambda _: batched(sample=lambda p: p)),
            ("reset returns None", lambda _: hooked(reset=lambda p, ctx: None)),
            ("reset returns a string", lambda _: hooked(reset=lambda p, ctx: "start")),
            (
                "reset reads a lower",
                lambda _: hooked(reset=lambda p, ctx: ctx.other.params),
            ),
            ("project to another shape", lambda _: hooked(project=lambda p: p[:1])),
            ("project raises", lambda _: hooked(project=raises)),
        ],
    )


class _Method:
    """A method that returns what is given."""

    def __init__(self, multiplier: Any) -> None:
        self.found = multiplier

    def multiplier(self, answer: Any, cotangent: Any, guess: Any = None) -> Any:
        return self.found(cotangent)

    def pairing(self, cost: Any, point: Any, multiplier: Any) -> Any:
        return cost(point)


def _methods() -> list[Case]:
    def method(multiplier: Any) -> Any:
        return traced(pair({"method": _Method(multiplier)}))

    def solver(solve: Any) -> Any:
        return traced(pair({"method": mlox.Implicit(solve)}))

    def raises(*_: Any) -> Any:
        raise KeyError("spectrum")

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        raise KeyError("rate")

    tx = optax.GradientTransformation(lambda params: (), update)
    return of_area(
        "Methods, solvers, optimizers of one's own",
        [
            ("a method that returns x alone", lambda _: method(lambda v: v)),
            ("a method that returns another structure", lambda _: method(_dropped)),
            ("a method that raises", lambda _: method(raises)),
            ("a solver that returns x alone", lambda _: solver(_alone)),
            ("a solver that returns another shape", lambda _: solver(_shortened)),
            ("a solver whose report is no dict", lambda _: solver(_numbered)),
            ("a solver with one parameter", lambda _: solver(lambda b: (b, {}))),
            ("a solver that raises", lambda _: solver(raises)),
            ("an optimizer that raises", lambda _: traced(alone(tx=tx))),
            (
                "Accumulated: a batch that does not divide",
                lambda _: _fit(mlox.Accumulated(_mean, 4)),
            ),
            (
                "MixedPrecision: a string for the loss",
                lambda _: _fit(mlox.MixedPrecision(lambda p, b, ctx: "low")),
            ),
            (
                "MixedPrecision: a model_state where there was none",
                lambda _: _fit(mlox.MixedPrecision(_stateful)),
            ),
        ],
    )


def _mean(params: Any, batch: Any, ctx: Any) -> Any:
    return jnp.mean((params[0] - batch) ** 2)


def _stateful(params: Any, batch: Any, ctx: Any) -> Any:
    return {"loss": jnp.sum(params), "model_state": {"mean": batch}}


def _alone(matvec: Any, b: Any, guess: Any = None) -> Any:
    return b


def _shortened(matvec: Any, b: Any, guess: Any = None) -> Any:
    return jax.tree.map(lambda x: x[:1], b), {}


def _numbered(matvec: Any, b: Any, guess: Any = None) -> Any:
    return b, 3


def _dropped(cotangent: Any) -> Any:
    return (), {}
