"""Bad checkpoints: the value, where it points to, what is restored and resumed."""

from __future__ import annotations

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from _case import Case, of_area
from _small import BATCH, alone, pair, ran

import mlox

ONE = alone()
ADAM = alone(tx=optax.adam(0.1))


def cases() -> list[Case]:
    return [*_values(), *_passed(), *_restored(), *_resumed()]


def _values() -> list[Case]:
    def value(directory: Any = "runs", **parts: Any) -> Any:
        return mlox.Checkpoint(directory, **parts)

    return of_area(
        "Checkpoint",
        [
            ("a bucket", lambda _: value("gs://runs/1")),
            ("no folder", lambda _: value(None)),
            ("every=0", lambda _: value(every=0)),
            ("keep=0", lambda _: value(keep=0)),
            ("best='loss'", lambda _: value(best="loss")),
            ("mode='lower'", lambda _: value(mode="lower")),
            ("async_=1", lambda _: value(async_=1)),
        ],
    )


def saved(folder: pathlib.Path, **options: Any) -> mlox.Checkpoint:
    """Save a checkpoint after each of three cycles."""
    checkpoint = mlox.Checkpoint(folder / "run", every=1, async_=False)
    ran(ONE, checkpoint=checkpoint, **options)
    return checkpoint


def _passed() -> list[Case]:
    def run(folder: pathlib.Path, **options: Any) -> Any:
        return ran(ONE, checkpoint=mlox.Checkpoint(folder / "run", **options))

    return of_area(
        "engine.run: checkpoint",
        [
            ("a path", lambda folder: ran(ONE, checkpoint=folder)),
            ("resume without a checkpoint", lambda _: ran(ONE, resume=True)),
            ("resume='auto'", lambda _: ran(ONE, resume="auto")),
            (
                "best on a score without a validation",
                lambda folder: run(folder, best="validation/error"),
            ),
            (
                "best on an unknown metric",
                lambda folder: run(folder, best="fit/error", every=1),
            ),
            (
                "best of points that are not recorded",
                lambda folder: ran(
                    ONE,
                    log_every=2,
                    checkpoint=mlox.Checkpoint(folder, every=3, best="fit/loss"),
                ),
            ),
            ("a folder that is a file", _in_a_file),
            ("a folder under a file", _under_a_file),
            ("a folder that holds a run", lambda folder: _again(folder)),
        ],
    )


def _in_a_file(folder: pathlib.Path) -> Any:
    (folder / "run").write_text("")
    return ran(ONE, checkpoint=mlox.Checkpoint(folder / "run"))


def _under_a_file(folder: pathlib.Path) -> Any:
    (folder / "run").write_text("")
    return ran(ONE, checkpoint=mlox.Checkpoint(folder / "run" / "first"))


def _again(folder: pathlib.Path) -> Any:
    return ran(ONE, checkpoint=saved(folder))


def _restored() -> list[Case]:
    def restore(folder: pathlib.Path, state: Any = None, **options: Any) -> Any:
        saved(folder)
        state = ONE.init() if state is None else state
        return mlox.restore(folder / "run", state, **options)

    return of_area(
        "restore",
        [
            (
                "a folder that does not exist",
                lambda folder: mlox.restore(folder / "nowhere", ONE.init()),
            ),
            ("an empty folder", lambda folder: mlox.restore(folder, ONE.init())),
            ("a number for the folder", lambda _: mlox.restore(3, ONE.init())),
            ("a cycle that there is not", lambda folder: restore(folder, cycle=7)),
            ("cycle='last'", lambda folder: restore(folder, cycle="last")),
            (
                "the best of a run without one",
                lambda folder: restore(folder, cycle="best"),
            ),
            (
                "a state of other problems",
                lambda folder: restore(folder, pair().init()),
            ),
            (
                "a state of other shapes",
                lambda folder: restore(
                    folder, alone(params=jnp.zeros(3, jnp.float32)).init()
                ),
            ),
            (
                "a state of another dtype",
                lambda folder: restore(
                    folder, alone(params=jnp.zeros(2, jnp.float16)).init()
                ),
            ),
            ("params for the state", lambda folder: restore(folder, BATCH)),
            ("an engine for the state", lambda folder: restore(folder, ONE)),
            ("the folder of one checkpoint", _inside),
        ],
    )


def _inside(folder: pathlib.Path) -> Any:
    saved(folder)
    return mlox.restore(folder / "run" / "3", ONE.init())


def _resumed() -> list[Case]:
    def resume(
        folder: pathlib.Path, engine: Any = ONE, data: Any = None, **o: Any
    ) -> Any:
        options = {"train_iters": 6, "resume": True, **o}
        return ran(engine, data, checkpoint=saved(folder), **options)

    return of_area(
        "engine.run: resume",
        [
            ("another graph", lambda folder: resume(folder, pair())),
            ("another optimizer", lambda folder: resume(folder, ADAM)),
            (
                "other unroll_steps",
                lambda folder: resume(folder, alone(unroll_steps=3)),
            ),
            ("another metric", lambda folder: resume(folder, _measuring())),
            (
                "another policy for faults",
                lambda folder: resume(folder, on_nonfinite="skip"),
            ),
            (
                "fewer cycles than are behind",
                lambda folder: resume(folder, train_iters=2),
            ),
            ("a score of another name", _rescored),
            ("a table that was tampered with", _tampered),
            ("series of another kind", _reordered),
        ],
    )


def _measuring() -> mlox.Engine:
    def loss(params: Any, batch: Any, ctx: Any) -> Any:
        return {"loss": jnp.sum(params**2), "norm": jnp.max(params)}

    return alone(loss_fn=loss)


def _rescored(folder: pathlib.Path) -> Any:
    checkpoint = saved(folder, validation=lambda state: {"error": 0.5})
    return ran(
        ONE,
        train_iters=6,
        resume=True,
        checkpoint=checkpoint,
        validation=lambda state: {"accuracy": 0.5},
    )


def _tampered(folder: pathlib.Path) -> Any:
    table = folder / "metrics.csv"
    checkpoint = saved(folder, loggers=[mlox.csv_logger(table)])
    table.write_text("cycle,fit/loss\none,0.5\n")
    loggers = [mlox.csv_logger(table)]
    return ran(ONE, train_iters=6, resume=True, checkpoint=checkpoint, loggers=loggers)


def _reordered(folder: pathlib.Path) -> Any:
    """Resume with `together` where a list was."""
    engine = pair()
    checkpoint = mlox.Checkpoint(folder / "run", every=1, async_=False)
    ran(engine, {"fit": [BATCH]}, checkpoint=checkpoint)
    data = {"fit": mlox.together([BATCH], np.ones((1, 2), np.float32).tolist())}
    return ran(engine, data, train_iters=6, resume=True, checkpoint=checkpoint)
