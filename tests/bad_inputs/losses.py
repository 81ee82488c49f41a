"""Losses and other functions of problems that do not do what they should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import mlox

from ..small import ZEROS, pair, single, trace
from .case import Case, table

Loss = Callable[[Any, Any, mlox.Context], Any]


@jax.custom_vjp
def _opaque(x: jax.Array) -> jax.Array:
    return jnp.sum(x**2)


def _opaque_backward(x: jax.Array, slope: jax.Array) -> tuple[jax.Array]:
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return (slope * jax.pure_callback(lambda x: 2 * x, like, x),)


_opaque.defvjp(lambda x: (_opaque(x), x), _opaque_backward)


def cases() -> list[Case]:
    return [*_contexts(), *_returned(), *_states(), *_functions(), *_methods()]


def _fit(loss: Loss, **parts: Any) -> Any:
    return trace(pair({"loss_fn": loss, **parts}))


def _contexts() -> list[Case]:
    return table(
        "Losses: what they read",
        [
            (
                "a problem that is not declared",
                lambda _: trace(single(loss_fn=lambda p, b, ctx: ctx.penalty.params)),
                ValueError,
                r"'fit' reads ctx\['penalty'\].*l2u={'penalty': \['fit'\]}",
            ),
            (
                "a misspelt neighbour",
                lambda _: _fit(lambda p, b, ctx: ctx["penalti"].params),
                ValueError,
                r"reads ctx\['penalti'\].*l2u={'penalti': \['fit'\]}.*\['penalty'\]",
            ),
            (
                "a neighbour's apply_fn that it lacks",
                lambda _: _fit(lambda p, b, ctx: ctx.penalty(b)),
                ValueError,
                "'penalty'.*apply_fn=",
            ),
            (
                "a neighbour with tasks called with an array for one of them",
                lambda _: mlox.Neighbour(
                    jnp.ones((3, 2)), None, jnp.dot, "fit", tasks=3
                )(ZEROS),
                ValueError,
                r"'fit' has 3 tasks.*argument 0 of shape \[2\].*broadcast_to",
            ),
            (
                "a neighbour's attribute that does not exist",
                lambda _: _fit(lambda p, b, ctx: ctx.penalty.weights),
                AttributeError,
                "'weights'.*loss_fn of problem 'fit'",
            ),
            (
                "a batch where there is none",
                lambda _: trace(single(loss_fn=lambda p, b, ctx: jnp.sum(p - b))),
                TypeError,
                "loss_fn of problem 'fit'.*batch is None.*data={'fit'",
            ),
            (
                "ctx.rng where there is none",
                lambda _: trace(
                    single(loss_fn=lambda p, b, ctx: jax.random.normal(ctx.rng))
                ),
                TypeError,
                "loss_fn of problem 'fit'.*rng is None.*Pass rng=",
            ),
            (
                "ctx.model_state where there is none",
                lambda _: trace(
                    single(loss_fn=lambda p, b, ctx: ctx.model_state["mean"])
                ),
                TypeError,
                "loss_fn of problem 'fit'.*model_state is None.*Pass model_state=",
            ),
            (
                "params by a wrong key",
                lambda _: trace(
                    single(params={"w": ZEROS}, loss_fn=lambda p, b, ctx: p["v"].sum())
                ),
                KeyError,
                r"'v'.*loss_fn of problem 'fit'.*{'w': 'float32\[2\]'}",
            ),
            (
                "shapes that do not go together",
                lambda _: trace(single(loss_fn=lambda p, b, ctx: p @ ZEROS[:1])),
                TypeError,
                r"loss_fn of problem 'fit'.*params=float32\[2\]",
            ),
        ],
    )


def _assigns(params: Any, batch: Any, ctx: Any) -> Any:
    ctx.step = 0


def _returned() -> list[Case]:
    def returns(found: Callable[[Any], Any]) -> Any:
        return trace(single(loss_fn=lambda params, batch, ctx: found(params)))

    return table(
        "Losses: what they return",
        [
            (
                "a vector",
                lambda _: returns(lambda p: p**2),
                ValueError,
                r"'fit' returned float32\[2\].*jnp.mean",
            ),
            (
                "an integer",
                lambda _: returns(lambda p: jnp.int32(3)),
                ValueError,
                r"'fit' returned int32\[\].*floating",
            ),
            (
                "None",
                lambda _: returns(lambda p: None),
                ValueError,
                "'fit' returned 'loss' = None.*floating scalar",
            ),
            (
                "a pair (loss, aux)",
                lambda _: returns(lambda p: (p[0], {"a": p[1]})),
                ValueError,
                r"'fit' returned 'loss' = \(.*floating scalar",
            ),
            (
                "a string",
                lambda _: returns(lambda p: "low"),
                ValueError,
                "'fit' returned 'loss' = 'low'.*floating scalar",
            ),
            (
                "a metric with the name of the losses of tasks",
                lambda _: trace(
                    single(
                        tasks=3,
                        loss_fn=lambda p, b, ctx: {"loss": p[0], "loss_per_task": p[0]},
                    )
                ),
                ValueError,
                "'fit' returned the metric 'loss_per_task'.*Rename",
            ),
            (
                "a dict without 'loss'",
                lambda _: returns(lambda p: {"error": p[0]}),
                ValueError,
                r"'fit' returned {'error': .*'loss'",
            ),
            (
                "a dict for a metric",
                lambda _: returns(lambda p: {"loss": p[0], "parts": {"a": p[1]}}),
                ValueError,
                "'fit' returned 'parts' = .*array",
            ),
            (
                "a string for a metric",
                lambda _: returns(lambda p: {"loss": p[0], "kind": "ridge"}),
                ValueError,
                "'fit' returned 'kind' = 'ridge'.*array",
            ),
            (
                "two metrics of one name",
                lambda _: returns(lambda p: {"loss": p[0], 1: p[1], "1": p[0]}),
                ValueError,
                "'fit' returned two metrics called '1'.*strings",
            ),
            (
                "a metric called as a solver's report",
                lambda _: trace(
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
                ValueError,
                "'penalty' returned.*'fit/residual'.*Rename",
            ),
            (
                "a metric called as one of telemetry",
                lambda _: trace(
                    pair(
                        None,
                        {
                            "loss_fn": lambda p, b, ctx: {
                                "loss": jnp.sum(ctx.fit.params**2),
                                "direct_norm": 0.0,
                            }
                        },
                        telemetry=True,
                    )
                ),
                ValueError,
                "'penalty' returned.*'direct_norm'.*telemetry.*Rename",
            ),
        ],
    )


def _states() -> list[Case]:
    def states(found: Any, state: Any = None) -> Any:
        def loss(params: Any, batch: Any, ctx: Any) -> Any:
            return {"loss": jnp.sum(params**2), "model_state": found}

        return trace(single(loss_fn=loss, model_state=state))

    mean = {"mean": ZEROS}
    return table(
        "Losses: model_state",
        [
            (
                "one where there was none",
                lambda _: states(mean),
                ValueError,
                r"'fit': model_state.*create\(model_state=\)",
            ),
            (
                "another shape",
                lambda _: states({"mean": ZEROS[:1]}, mean),
                ValueError,
                r"'fit': model_state.*float32\[1\].*create\(model_state=\)",
            ),
            (
                "a string in it",
                lambda _: states({"mean": "zero"}, mean),
                ValueError,
                r"'fit': model_state.*\['mean'\] is 'zero'",
            ),
        ],
    )


def _functions() -> list[Case]:
    def hooked(**parts: Any) -> Any:
        return trace(pair(parts))

    def batched(**parts: Any) -> Any:
        return trace(pair(parts), {"penalty": None, "fit": None})

    def raises(*_: Any) -> Any:
        raise KeyError("scale")

    return table(
        "sample, reset, project",
        [
            (
                "sample reads an undeclared name",
                lambda _: batched(sample=lambda p, ctx: ctx.noise.params),
                ValueError,
                r"reads ctx\['noise'\].*l2u={'noise': \['fit'\]}.*sample of problem",
            ),
            (
                "sample returns a string",
                lambda _: batched(sample=lambda p, c: "batch"),
                TypeError,
                "'fit': sample returned.*'batch'.*arrays",
            ),
            (
                "sample returns None",
                lambda _: batched(sample=lambda p, ctx: None),
                TypeError,
                "loss_fn of problem 'fit'.*batch is None.*data={'fit'",
            ),
            (
                "sample raises",
                lambda _: batched(sample=raises),
                KeyError,
                "'scale'.*sample of problem 'fit'",
            ),
            (
                "sample with one parameter",
                lambda _: batched(sample=lambda p: p),
                TypeError,
                r"'fit': sample takes \(p\).*ctx",
            ),
            (
                "reset returns None",
                lambda _: hooked(reset=lambda p, ctx: None),
                ValueError,
                r"'fit': reset\(.*\) does not fit params: it is None",
            ),
            (
                "reset returns a string",
                lambda _: hooked(reset=lambda p, ctx: "start"),
                ValueError,
                r"'fit': reset\(.*\) is 'start'.*array",
            ),
            (
                "reset reads a lower",
                lambda _: hooked(reset=lambda p, ctx: ctx.other.params),
                ValueError,
                r"reads ctx\['other'\].*l2u={'other': \['fit'\]}.*reset of problem",
            ),
            (
                "project to another shape",
                lambda _: hooked(project=lambda p: p[:1]),
                ValueError,
                r"'fit': project\(.*\) does not fit params.*float32\[1\]",
            ),
            (
                "project raises",
                lambda _: hooked(project=raises),
                KeyError,
                "'scale'.*project of problem 'fit'",
            ),
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
        return trace(pair({"method": _Method(multiplier)}))

    def solver(solve: Any) -> Any:
        return trace(pair({"method": mlox.Implicit(solve)}))

    def raises(*_: Any) -> Any:
        raise KeyError("spectrum")

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        raise KeyError("rate")

    def opaque(params: Any, batch: Any, ctx: mlox.Context) -> Any:
        return _opaque(params) + jnp.sum(params * ctx.penalty.params)

    tx = optax.GradientTransformation(lambda params: (), update)
    return table(
        "Methods, solvers, optimizers of one's own",
        [
            (
                "a rule whose backward pass has no derivative",
                lambda _: _fit(opaque),
                TypeError,
                "'fit' calls a jax.custom_vjp.*backward pass.*FiniteDifference",
            ),
            (
                "a rule under GaussNewton",
                lambda _: _fit(
                    mlox.Composed(lambda p, b, ctx: p, opaque),
                    method=mlox.GaussNewton(),
                ),
                TypeError,
                r"'fit' calls a jax.custom_vjp, _opaque.*GaussNewton\(\).*Impl",
            ),
            (
                "a method that returns x alone",
                lambda _: method(lambda v: v),
                ValueError,
                "multiplier returned .*like the cotangent.*method of problem 'fit'",
            ),
            (
                "a method that returns another structure",
                lambda _: method(_dropped),
                ValueError,
                "multiplier.* differs from the cotangent.*method of problem 'fit'",
            ),
            (
                "a method that reports a gap",
                lambda _: method(lambda v: (v, {"gap": 0.0})),
                ValueError,
                "multiplier returned a report.*'gap'.*another key.*problem 'fit'",
            ),
            (
                "a method that raises",
                lambda _: method(raises),
                KeyError,
                "'spectrum'.*method of problem 'fit'",
            ),
            (
                "a solver that returns x alone",
                lambda _: solver(_alone),
                ValueError,
                "solver returned .*like b.*method of problem 'fit'",
            ),
            (
                "a solver that returns another shape",
                lambda _: solver(_shortened),
                ValueError,
                r"solver returned .*float32\[1\].*like b.*method of problem 'fit'",
            ),
            (
                "a solver whose report is no dict",
                lambda _: solver(_numbered),
                TypeError,
                r"solver returned .* 3\).*\(x, report\).*method of problem 'fit'",
            ),
            (
                "a solver with one parameter",
                lambda _: solver(lambda b: (b, {})),
                TypeError,
                r"method of problem 'fit', Implicit\(",
            ),
            (
                "a solver that raises",
                lambda _: solver(raises),
                KeyError,
                "'spectrum'.*method of problem 'fit'",
            ),
            (
                "an optimizer that raises",
                lambda _: trace(single(tx=tx)),
                KeyError,
                "'rate'.*tx of problem 'fit'",
            ),
            (
                "Accumulated: a batch that does not divide",
                lambda _: _fit(mlox.Accumulated(_mean, 4)),
                ValueError,
                r"'fit'.*Accumulated\(steps=4\).*\[2\].*leading axis",
            ),
            (
                "Accumulated: a model_state of another shape",
                lambda _: _fit(
                    mlox.Accumulated(_widens, 2), model_state={"mean": jnp.float32(0.0)}
                ),
                ValueError,
                r"'fit': model_state.*\['mean'\] is float32\[1\], expected float32\[\]",
            ),
            (
                "Proximal: a neighbour of another shape",
                lambda _: _fit(
                    mlox.Proximal(lambda p, b, ctx: jnp.sum(p), lambda ctx: (), 1.0)
                ),
                ValueError,
                "'fit': Proximal.*pulled to parameters.*no such leaf|missing.*init",
            ),
            (
                "MixedPrecision: a string for the loss",
                lambda _: _fit(mlox.MixedPrecision(lambda p, b, ctx: "low")),
                ValueError,
                "'fit' returned 'loss' = 'low'.*floating scalar",
            ),
            (
                "MixedPrecision: a model_state where there was none",
                lambda _: _fit(mlox.MixedPrecision(_stateful)),
                ValueError,
                r"'fit': model_state.*bfloat16.*create\(model_state=\)",
            ),
        ],
    )


def _mean(params: Any, batch: Any, ctx: Any) -> Any:
    return jnp.mean((params[0] - batch) ** 2)


def _widens(params: Any, batch: Any, ctx: mlox.Context) -> Any:
    mean = ctx.model_state["mean"].reshape(1)
    return {"loss": _mean(params, batch, ctx), "model_state": {"mean": mean}}


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
