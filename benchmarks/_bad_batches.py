"""Bad states and batches of a step and its kin: step, compile, stack, evaluate."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _case import Case, of_area
from _small import BATCH, GOOD, UNROLL, alone, pair, traced

import mlox

ENGINE = pair()
STATE = ENGINE.init()
F32 = np.float32


def cases() -> list[Case]:
    return [*_batches(), *_states(), *_compiled(), *_stacked(), *_asked()]


def _step(fit: Any, **others: Any) -> Any:
    return traced(ENGINE, {"penalty": None, "fit": fit, **others})


def _eager(fit: Any) -> Any:
    return ENGINE.step(STATE, {"penalty": None, "fit": fit})


def _batches() -> list[Case]:
    stacked = np.ones((UNROLL, 2), F32)
    return of_area(
        "engine.step: batches",
        [
            ("None", lambda _: ENGINE.step(STATE, None)),
            ("the batch itself", lambda _: ENGINE.step(STATE, stacked)),
            ("a problem left out", lambda _: ENGINE.step(STATE, {"fit": stacked})),
            ("an unknown name", lambda _: _step(stacked, valid=stacked)),
            ("no leading axis", lambda _: _step(BATCH[0])),
            ("three batches for two steps", lambda _: _step(np.ones((3, 2), F32))),
            (
                "a batch without the axis of tasks",
                lambda _: traced(pair({"tasks": 3})),
            ),
            ("a list of batches", lambda _: _step([BATCH, BATCH])),
            ("strings", lambda _: _eager(np.array(["a", "b"]))),
            ("None where the loss reads a batch", lambda _: _step(None)),
            (
                "a batch for a problem that samples",
                lambda _: traced(pair({"sample": lambda p, ctx: p})),
            ),
            ("other shapes than the params", lambda _: _step(np.ones((2, 3), F32))),
        ],
    )


def _states() -> list[Case]:
    fit, penalty = STATE["fit"], STATE["penalty"]

    def step(**changed: Any) -> Any:
        return ENGINE.step({**STATE, **changed}, GOOD)

    def changed(**parts: Any) -> Any:
        return step(fit=fit.replace(**parts))

    return of_area(
        "engine.step: state",
        [
            ("None", lambda _: ENGINE.step(None, GOOD)),
            ("a problem left out", lambda _: ENGINE.step({"fit": fit}, GOOD)),
            ("params for a problem", lambda _: step(fit=fit.params)),
            ("problems exchanged", lambda _: step(fit=penalty, penalty=fit)),
            ("other unroll_steps", lambda _: changed(unroll_steps=3)),
            ("another kind of method", lambda _: changed(method=mlox.Unrolled())),
            ("params of another shape", lambda _: changed(params=jnp.zeros(3, F32))),
            ("integer params", lambda _: changed(params=jnp.zeros(2, jnp.int32))),
            ("step=None", lambda _: changed(step=None)),
            ("step=1.5", lambda _: changed(step=1.5)),
            ("rng=0", lambda _: changed(rng=0)),
            ("an optimizer's state of another", lambda _: changed(opt_state=(BATCH,))),
            ("a loss_scale of 2", lambda _: changed(loss_scale=2.0)),
            ("a string in model_state", lambda _: changed(model_state="mean")),
            ("a stack of states", lambda _: ENGINE.step(_twice(STATE), GOOD)),
        ],
    )


def _twice(state: Any) -> Any:
    return jax.tree.map(lambda x: jnp.stack([x, x]), state)


def _compiled() -> list[Case]:
    return of_area(
        "engine.compile",
        [
            ("donate='yes'", lambda _: ENGINE.compile(donate="yes")),
            ("a state donated twice", _donated_twice),
        ],
    )


def _donated_twice(folder: Any) -> Any:
    engine = alone()
    step, state = engine.compile(), engine.init()
    step(state, {"fit": None})
    return step(state, {"fit": None})


def _stacked() -> list[Case]:
    def stack(fit: Any) -> Any:
        return ENGINE.stack({"fit": fit})

    return of_area(
        "engine.stack",
        [
            ("a list", lambda _: stack([BATCH, BATCH])),
            ("an array", lambda _: stack(BATCH)),
            ("an unknown name", lambda _: ENGINE.stack({"fitt": iter([BATCH])})),
            ("an iterator that ends", lambda _: stack(iter([BATCH]))),
            ("batches of other shapes", lambda _: stack(iter([BATCH, BATCH[:1]]))),
            ("batches of other structures", lambda _: stack(iter([BATCH, (BATCH,)]))),
            ("strings for batches", lambda _: stack(iter(["a", "b"]))),
        ],
    )


def _asked() -> list[Case]:
    def evaluated(*given: Any, **named: Any) -> Any:
        return ENGINE.evaluate(STATE, *given, **named)

    return of_area(
        "engine.hypergradient, engine.evaluate",
        [
            (
                "the gradient of an unknown name",
                lambda _: ENGINE.hypergradient(STATE, GOOD, "penalti"),
            ),
            ("evaluate an unknown name", lambda _: evaluated("fitt", BATCH)),
            ("evaluate a batch of strings", lambda _: evaluated("fit", "batch")),
            ("evaluate with rng=0.5", lambda _: evaluated("fit", BATCH, rng=0.5)),
            ("evaluate without the batch it reads", lambda _: evaluated("fit", None)),
            ("evaluate no state", lambda _: ENGINE.evaluate(None, "fit", BATCH)),
            (
                "evaluate with name and state exchanged",
                lambda _: ENGINE.evaluate("fit", STATE, BATCH),
            ),
            (
                "evaluate a loss that draws, without a key",
                lambda _: _drawing().evaluate(_drawing().init(), "fit", None),
            ),
        ],
    )


def _drawing() -> mlox.Engine:
    def loss(params: Any, batch: Any, ctx: Any) -> Any:
        return jnp.sum(params * jax.random.normal(ctx.rng, params.shape))

    return alone(loss_fn=loss, rng=0)
