"""Bad arguments of `engine.run`, its data and its hooks among them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _case import Case, of_area
from _small import BATCH, alone, pair, problem, ran

import mlox

ENGINE = pair()
ONE = alone()
DATA = {"fit": [BATCH, BATCH]}


def cases() -> list[Case]:
    return [*_arguments(), *_data(), *_hooks(), *_names()]


def _arguments() -> list[Case]:
    def one(**options: Any) -> Any:
        return ran(ONE, **options)

    return of_area(
        "engine.run: arguments",
        [
            ("no state", lambda _: ONE.run(None, loggers=())),
            ("a state of another engine", lambda _: ONE.run(ENGINE.init(), loggers=())),
            ("train_iters=0", lambda _: one(train_iters=0)),
            ("train_iters=1e3", lambda _: one(train_iters=1e3)),
            ("valid_every without a validation", lambda _: one(valid_every=1)),
            ("cycles_per_dispatch='all'", lambda _: one(cycles_per_dispatch="all")),
            ("progress='bar'", lambda _: _run(progress="bar")),
            ("donate='yes'", lambda _: one(donate="yes")),
            ("a number for a validation", lambda _: one(validation=0.5)),
            ("a metric for early_stopping", lambda _: one(early_stopping="fit/loss")),
            (
                "early stopping on an unknown problem",
                lambda _: one(early_stopping=mlox.EarlyStopping("fitt/loss", "min")),
            ),
            (
                "early stopping on an unknown metric",
                lambda _: one(early_stopping=mlox.EarlyStopping("fit/error", "min")),
            ),
            (
                "early stopping on a score without a validation",
                lambda _: one(
                    early_stopping=mlox.EarlyStopping("validation/error", "min")
                ),
            ),
            (
                "early stopping on a score that is not returned",
                lambda _: one(
                    validation=lambda state: {"accuracy": 0.5},
                    early_stopping=mlox.EarlyStopping("validation/error", "min"),
                ),
            ),
            ("one logger, not in a list", lambda _: one(loggers=mlox.stdout_logger())),
            ("a factory of loggers", lambda _: one(loggers=[mlox.stdout_logger])),
            ("a number for logdir", lambda _: one(logdir=3)),
            ("a file for logdir", lambda folder: one(logdir=_file(folder))),
            ("on_nonfinite='ignore'", lambda _: one(on_nonfinite="ignore")),
            (
                "on_nonfinite='restore' without a checkpoint",
                lambda _: one(on_nonfinite="restore"),
            ),
            ("an argument that does not exist", lambda _: one(epochs=3)),
        ],
    )


def _run(**options: Any) -> Any:
    return ONE.run(ONE.init(), train_iters=1, loggers=(), **options)


def _file(folder: Any) -> Any:
    (folder / "logs").write_text("")
    return folder / "logs"


def _data() -> list[Case]:
    def fed(fit: Any, **options: Any) -> Any:
        return ran(ENGINE, {"fit": fit}, **options)

    return of_area(
        "engine.run: data",
        [
            ("a list for the dict", lambda _: ran(ENGINE, [BATCH])),
            ("an unknown name", lambda _: ran(ENGINE, {"fitt": [BATCH]})),
            ("one batch", lambda _: fed(BATCH)),
            ("a pair of arrays", lambda _: fed((BATCH, BATCH))),
            ("a number", lambda _: fed(3)),
            ("no data where the loss reads a batch", lambda _: ran(ENGINE)),
            ("an empty list", lambda _: fed([])),
            ("batches of other shapes", lambda _: fed([BATCH, BATCH[:1]])),
            (
                "batches that do not fit the loss",
                lambda _: fed([np.ones(3, np.float32)] * 2),
            ),
            (
                "data for a problem that samples",
                lambda _: ran(pair({"sample": lambda p, ctx: p}), DATA),
            ),
        ],
    )


def _three() -> Iterator[Any]:
    return itertools.islice(itertools.repeat(BATCH), 3)


def _raising() -> Iterator[Any]:
    yield BATCH
    yield BATCH
    raise OSError("images/17.png is gone")


def _hooks() -> list[Case]:
    def validated(found: Any) -> Any:
        return ran(ONE, validation=lambda state: found)

    def fails(state: Any) -> Any:
        raise KeyError("labels")

    count = itertools.count()
    return of_area(
        "engine.run: validations",
        [
            ("one that returns a number", lambda _: validated(0.5)),
            ("a vector for a score", lambda _: validated({"error": np.ones(2)})),
            ("a string for a score", lambda _: validated({"error": "low"})),
            ("a score whose name is a number", lambda _: validated({1: 0.5, "1": 0.4})),
            (
                "other names every time",
                lambda _: ran(ONE, validation=lambda s: {f"error{next(count)}": 0.5}),
            ),
            ("a score called 'cycle'", lambda _: validated({"cycle": 0.5})),
            ("one with two parameters", lambda _: ran(ONE, validation=_two)),
            ("one that raises", lambda _: ran(ONE, validation=fails)),
        ],
    )


def _two(state: Any, cycle: int) -> Any:
    return {"error": 0.0}


def _named(loss: Any = None, **options: Any) -> Any:
    return ran(alone(**({"loss_fn": loss} if loss else {})), **options)


def _names() -> list[Case]:
    def called(name: str, **options: Any) -> Any:
        return ran(mlox.Engine([problem(name)]), **options)

    return of_area(
        "engine.run: names and devices",
        [
            (
                "a problem called 'validation', with a validation",
                lambda _: called("validation", validation=lambda state: {"a": 0.5}),
            ),
            (
                "a problem called 'run', with on_nonfinite",
                lambda _: called("run", on_nonfinite="skip"),
            ),
            (
                "a metric called 'nonfinite', with on_nonfinite",
                lambda _: _named(_counted, on_nonfinite="skip"),
            ),
            ("a loss that raises", lambda _: _named(_missing)),
        ],
    )


def _counted(params: Any, batch: Any, ctx: Any) -> Any:
    return {"loss": jnp.sum(params**2), "nonfinite": 0}


def _missing(params: Any, batch: Any, ctx: Any) -> Any:
    raise KeyError("weights")


def _calls_back(params: Any, batch: Any, ctx: Any) -> Any:
    def fails(x: Any) -> Any:
        raise RuntimeError("the simulator has stopped")

    like = jax.ShapeDtypeStruct((), jnp.float32)
    noise = jax.pure_callback(fails, like, ctx.step, vmap_method="sequential")
    return jnp.sum(params**2) + jax.lax.stop_gradient(noise)
