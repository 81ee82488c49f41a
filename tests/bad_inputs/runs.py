"""Bad arguments of `engine.run`, its data and its hooks among them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mlox

from ..small import BATCH, pair, problem, run_engine, single
from .case import Case, table

ENGINE = pair()
ONE = single()
DATA = {"fit": [BATCH, BATCH]}


def cases() -> list[Case]:
    return [*_arguments(), *_data(), *_hooks(), *_names()]


def _arguments() -> list[Case]:
    def one(**options: Any) -> Any:
        return run_engine(ONE, **options)

    return table(
        "engine.run: arguments",
        [
            (
                "no state",
                lambda _: ONE.run(None, loggers=()),
                TypeError,
                r"state is None;.*\['fit'\].*engine.init",
            ),
            (
                "a state of another engine",
                lambda _: ONE.run(ENGINE.init(), loggers=()),
                ValueError,
                r"state.keys\(\) is \['fit', 'penalty'\];.*\['fit'\].*engine.init",
            ),
            (
                "train_iters=0",
                lambda _: one(train_iters=0),
                ValueError,
                "train_iters` is 0;.*positive",
            ),
            (
                "train_iters=1e3",
                lambda _: one(train_iters=1e3),
                ValueError,
                r"train_iters` is 1000\.0;.*positive",
            ),
            (
                "valid_every without a validation",
                lambda _: one(valid_every=1),
                ValueError,
                "valid_every.* 1, .*validation",
            ),
            (
                "cycles_per_dispatch='all'",
                lambda _: one(cycles_per_dispatch="all"),
                ValueError,
                "cycles_per_dispatch` is 'all';.*positive",
            ),
            (
                "progress='bar'",
                lambda _: _run(progress="bar"),
                TypeError,
                "progress.* 'bar';.*True, False",
            ),
            (
                "donate='yes'",
                lambda _: one(donate="yes"),
                TypeError,
                "donate.* 'yes';.*True or False",
            ),
            (
                "a number for a validation",
                lambda _: one(validation=0.5),
                TypeError,
                r"validation` is 0\.5;.*function.*dict of scalars",
            ),
            (
                "a metric for early_stopping",
                lambda _: one(early_stopping="fit/loss"),
                TypeError,
                "early_stopping` is 'fit/loss';.*mlox.EarlyStopping",
            ),
            (
                "early stopping on an unknown problem",
                lambda _: one(early_stopping=mlox.EarlyStopping("fitt/loss", "min")),
                ValueError,
                r"early_stopping.*'fitt/loss'.*\['fit'\]",
            ),
            (
                "early stopping on a metric that is not reported",
                lambda _: run_engine(
                    pair(metrics="none"),
                    early_stopping=mlox.EarlyStopping("fit/loss", "min"),
                ),
                ValueError,
                r"early_stopping.*'fit/loss'.*\['penalty'\].*'none'",
            ),
            (
                "early stopping on an unknown metric",
                lambda _: one(early_stopping=mlox.EarlyStopping("fit/error", "min")),
                mlox.RunError,
                r"cycle 0.*early_stopping.*'fit/error'.*\['fit/loss'\]",
            ),
            (
                "early stopping on a score without a validation",
                lambda _: one(
                    early_stopping=mlox.EarlyStopping("validation/error", "min")
                ),
                ValueError,
                "early_stopping.*'validation/error'.*function",
            ),
            (
                "early stopping on a score that is not returned",
                lambda _: one(
                    validation=lambda state: {"accuracy": 0.5},
                    early_stopping=mlox.EarlyStopping("validation/error", "min"),
                ),
                mlox.RunError,
                "cycle 1.*early_stopping.*'validation/error'.*'validation/accuracy'",
            ),
            (
                "one logger, not in a list",
                lambda _: one(loggers=mlox.stdout_logger()),
                TypeError,
                "loggers` is .*;.*list of loggers",
            ),
            (
                "a factory of loggers",
                lambda _: one(loggers=[mlox.stdout_logger]),
                TypeError,
                r"loggers.*function.*stdout_logger\(\)",
            ),
            (
                "a number for logdir",
                lambda _: one(logdir=3),
                TypeError,
                "logdir.* 3;.*path",
            ),
            (
                "a file for logdir",
                lambda folder: one(logdir=_file(folder)),
                FileExistsError,
                "cannot write to 'FOLDER/logs/metrics.jsonl'.*path",
            ),
            (
                "on_nonfinite='ignore'",
                lambda _: one(on_nonfinite="ignore"),
                ValueError,
                "on_nonfinite.* 'ignore';.*'raise', 'skip', 'restore'",
            ),
            (
                "on_nonfinite='restore' without a checkpoint",
                lambda _: one(on_nonfinite="restore"),
                ValueError,
                "on_nonfinite.* 'restore'.*mlox.Checkpoint",
            ),
            (
                "an argument that does not exist",
                lambda _: one(epochs=3),
                TypeError,
                "'epochs'",
            ),
        ],
    )


def _run(**options: Any) -> Any:
    return ONE.run(ONE.init(), train_iters=1, loggers=(), **options)


def _file(folder: Any) -> Any:
    (folder / "logs").write_text("")
    return folder / "logs"


def _data() -> list[Case]:
    def fed(fit: Any, **options: Any) -> Any:
        return run_engine(ENGINE, {"fit": fit}, **options)

    return table(
        "engine.run: data",
        [
            (
                "a list for the dict",
                lambda _: run_engine(ENGINE, [BATCH]),
                TypeError,
                r"`data` is \[.*dict {name",
            ),
            (
                "an unknown name",
                lambda _: run_engine(ENGINE, {"fitt": [BATCH]}),
                ValueError,
                r"data.*'fitt'.*\['fit', 'penalty'\]",
            ),
            (
                "one batch",
                lambda _: fed(BATCH),
                ValueError,
                "'fit' is one ndarray.*list of batches",
            ),
            (
                "a pair of arrays",
                lambda _: fed((BATCH, BATCH)),
                ValueError,
                "'fit' is one tuple.*mlox.together",
            ),
            ("a number", lambda _: fed(3), TypeError, "'fit' is 3.*iterable"),
            (
                "no data where the loss reads a batch",
                lambda _: run_engine(ENGINE),
                mlox.RunError,
                "step of cycle 1.*loss_fn of problem 'fit'.*batch=None",
            ),
            (
                "an empty list",
                lambda _: fed([]),
                ValueError,
                "'fit' is empty.*drop_last",
            ),
            (
                "batches of other shapes",
                lambda _: fed([BATCH, BATCH[:1]]),
                ValueError,
                r"batch 2 of 'fit'.*float32\[1\].*float32\[2\].*drop_last",
            ),
            (
                "batches that do not fit the loss",
                lambda _: fed([np.ones(3, np.float32)] * 2),
                mlox.RunError,
                r"step of cycle 1.*loss_fn of problem 'fit'.*batch=float32\[3\]",
            ),
            (
                "data for a problem that samples",
                lambda _: run_engine(pair({"sample": lambda p, ctx: p}), DATA),
                mlox.RunError,
                "step of cycle 1.*'fit'.*None.*samples",
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
        return run_engine(ONE, validation=lambda state: found)

    def fails(state: Any) -> Any:
        raise KeyError("labels")

    count = itertools.count()
    return table(
        "engine.run: validations",
        [
            (
                "one that returns a number",
                lambda _: validated(0.5),
                mlox.RunError,
                r"validation after cycle 1.* is 0\.5;.*dict of scalars",
            ),
            (
                "a vector for a score",
                lambda _: validated({"error": np.ones(2)}),
                mlox.RunError,
                r"validation after cycle 1.*'error'.*float64\[2\]",
            ),
            (
                "a string for a score",
                lambda _: validated({"error": "low"}),
                mlox.RunError,
                "validation after cycle 1.*'error'.*<U3",
            ),
            (
                "a score whose name is a number",
                lambda _: validated({1: 0.5, "1": 0.4}),
                mlox.RunError,
                "validation after cycle 1.*name of a score is 1;.*string",
            ),
            (
                "other names every time",
                lambda _: run_engine(
                    ONE, validation=lambda s: {f"error{next(count)}": 0.5}
                ),
                mlox.RunError,
                "cycle 2.*'validation/error1'.*'validation/error0'.*same names",
            ),
            (
                "a score called 'cycle'",
                lambda _: validated({"cycle": 0.5}),
                mlox.RunError,
                "validation after cycle 1.*'cycle'.*history",
            ),
            (
                "one with two parameters",
                lambda _: run_engine(ONE, validation=_two),
                mlox.RunError,
                "validation after cycle 1.*'cycle'",
            ),
            (
                "one that raises",
                lambda _: run_engine(ONE, validation=fails),
                mlox.RunError,
                "validation after cycle 1.*KeyError: 'labels'",
            ),
        ],
    )


def _two(state: Any, cycle: int) -> Any:
    return {"error": 0.0}


def _named(loss: Any = None, **options: Any) -> Any:
    return run_engine(single(**({"loss_fn": loss} if loss else {})), **options)


def _names() -> list[Case]:
    def called(name: str, **options: Any) -> Any:
        return run_engine(mlox.Engine([problem(name)]), **options)

    return table(
        "engine.run: names and devices",
        [
            (
                "a problem called 'validation', with a validation",
                lambda _: called("validation", validation=lambda state: {"a": 0.5}),
                ValueError,
                "problem is called 'validation'.*rename",
            ),
            (
                "a problem called 'run', with on_nonfinite",
                lambda _: called("run", on_nonfinite="skip"),
                ValueError,
                "problem is called 'run'.*on_nonfinite.*rename",
            ),
            (
                "a metric called 'nonfinite', with on_nonfinite",
                lambda _: _named(_counted, on_nonfinite="skip"),
                mlox.RunError,
                "step of cycle 1.*'fit/nonfinite'.*rename",
            ),
            (
                "a loss that raises",
                lambda _: _named(_missing),
                mlox.RunError,
                "step of cycle 1.*KeyError: 'weights'.*loss_fn of problem 'fit'",
            ),
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
