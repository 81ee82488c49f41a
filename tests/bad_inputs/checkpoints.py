"""Bad checkpoints: the value, where it points to, what is restored and resumed."""

from __future__ import annotations

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import mlox

from ..small import BATCH, pair, run_engine, single
from .case import Case, table

ONE = single()
ADAM = single(tx=optax.adam(0.1))


def cases() -> list[Case]:
    return [*_values(), *_passed(), *_restored(), *_resumed()]


def _values() -> list[Case]:
    def value(directory: Any = "runs", **parts: Any) -> Any:
        return mlox.Checkpoint(directory, **parts)

    return table(
        "Checkpoint",
        [
            (
                "a bucket",
                lambda _: value("gs://runs/1"),
                ValueError,
                "directory is 'gs://runs/1'.*[Mm]ount",
            ),
            ("no folder", lambda _: value(None), TypeError, "directory is None;.*path"),
            ("every=0", lambda _: value(every=0), ValueError, "every is 0;.*positive"),
            ("keep=0", lambda _: value(keep=0), ValueError, "keep is 0;.*positive"),
            (
                "best='loss'",
                lambda _: value(best="loss"),
                ValueError,
                "best is 'loss';.*validation/accuracy",
            ),
            (
                "mode='lower'",
                lambda _: value(mode="lower"),
                ValueError,
                "mode is 'lower';.*'min'.*'max'",
            ),
            (
                "async_=1",
                lambda _: value(async_=1),
                TypeError,
                "async_ is 1;.*True or False",
            ),
        ],
    )


def save_three(folder: pathlib.Path, **options: Any) -> mlox.Checkpoint:
    """Save a checkpoint after each of three cycles."""
    checkpoint = mlox.Checkpoint(folder / "run", every=1, async_=False)
    run_engine(ONE, checkpoint=checkpoint, **options)
    return checkpoint


def _passed() -> list[Case]:
    def run(folder: pathlib.Path, **options: Any) -> Any:
        return run_engine(ONE, checkpoint=mlox.Checkpoint(folder / "run", **options))

    return table(
        "engine.run: checkpoint",
        [
            (
                "a path",
                lambda folder: run_engine(ONE, checkpoint=folder),
                TypeError,
                "checkpoint.* PosixPath.*mlox.Checkpoint",
            ),
            (
                "resume without a checkpoint",
                lambda _: run_engine(ONE, resume=True),
                ValueError,
                "resume.*mlox.Checkpoint",
            ),
            (
                "resume='auto'",
                lambda _: run_engine(ONE, resume="auto"),
                TypeError,
                "resume.* 'auto';.*True or False",
            ),
            (
                "best on a score without a validation",
                lambda folder: run(folder, best="validation/error"),
                ValueError,
                "'validation/error'.*function",
            ),
            (
                "best on an unknown metric",
                lambda folder: run(folder, best="fit/error", every=1),
                mlox.RunError,
                r"cycle 0.*'fit/error'.*\['fit/loss'\]",
            ),
            (
                "best of points that are not recorded",
                lambda folder: run_engine(
                    ONE,
                    log_every=2,
                    checkpoint=mlox.Checkpoint(folder, every=3, best="fit/loss"),
                ),
                ValueError,
                "'fit/loss'.*every 2 cycles.*every 3.*multiple",
            ),
            (
                "a folder that is a file",
                _in_a_file,
                NotADirectoryError,
                "'FOLDER/run'.*file;.*folder",
            ),
            (
                "a folder under a file",
                _under_a_file,
                NotADirectoryError,
                "'FOLDER/run'.*file;.*folder",
            ),
            (
                "a folder that holds a run",
                lambda folder: _again(folder),
                FileExistsError,
                "'FOLDER/run'.*cycle 3.*resume=True",
            ),
        ],
    )


def _in_a_file(folder: pathlib.Path) -> Any:
    (folder / "run").write_text("")
    return run_engine(ONE, checkpoint=mlox.Checkpoint(folder / "run"))


def _under_a_file(folder: pathlib.Path) -> Any:
    (folder / "run").write_text("")
    return run_engine(ONE, checkpoint=mlox.Checkpoint(folder / "run" / "first"))


def _again(folder: pathlib.Path) -> Any:
    return run_engine(ONE, checkpoint=save_three(folder))


def _restored() -> list[Case]:
    def restore(folder: pathlib.Path, state: Any = None, **options: Any) -> Any:
        save_three(folder)
        state = ONE.init() if state is None else state
        return mlox.restore(folder / "run", state, **options)

    return table(
        "restore",
        [
            (
                "a folder that does not exist",
                lambda folder: mlox.restore(folder / "nowhere", ONE.init()),
                FileNotFoundError,
                "'FOLDER/nowhere'",
            ),
            (
                "an empty folder",
                lambda folder: mlox.restore(folder, ONE.init()),
                FileNotFoundError,
                "'newest' in 'FOLDER'",
            ),
            (
                "a number for the folder",
                lambda _: mlox.restore(3, ONE.init()),
                TypeError,
                "directory is 3;.*path",
            ),
            (
                "a cycle that there is not",
                lambda folder: restore(folder, cycle=7),
                FileNotFoundError,
                r"checkpoint 7 in 'FOLDER/run'.*\[1, 2, 3\]",
            ),
            (
                "cycle='last'",
                lambda folder: restore(folder, cycle="last"),
                ValueError,
                "cycle is 'last';.*'newest', 'best'",
            ),
            (
                "the best of a run without one",
                lambda folder: restore(folder, cycle="best"),
                FileNotFoundError,
                r"'best' in 'FOLDER/run'.*\[1, 2, 3\]",
            ),
            (
                "a state of other problems",
                lambda folder: restore(folder, pair().init()),
                ValueError,
                r"_3'.*penalty.params.*float32\[2\]",
            ),
            (
                "a state of other shapes",
                lambda folder: restore(
                    folder, single(params=jnp.zeros(3, jnp.float32)).init()
                ),
                ValueError,
                r"fit.params.*float32\[2\].*float32\[3\]",
            ),
            (
                "a state of another dtype",
                lambda folder: restore(
                    folder, single(params=jnp.zeros(2, jnp.float16)).init()
                ),
                ValueError,
                r"fit.params.*float32\[2\].*float16\[2\]",
            ),
            (
                "params for the state",
                lambda folder: restore(folder, BATCH),
                ValueError,
                r"_3'.*fit.params.*float32\[2\]",
            ),
            (
                "a name for partial",
                lambda folder: restore(folder, partial="fit"),
                TypeError,
                r"partial is 'fit';.*\['classifier.params'\]",
            ),
            (
                "an unknown name in partial",
                lambda folder: restore(folder, partial=["fitt"]),
                ValueError,
                r"the state holds no 'fitt'.*\['fit'\]",
            ),
            (
                "a checkpoint that was saved in an older format",
                _old,
                ValueError,
                "'FOLDER/run/3'.*format.*another directory",
            ),
            (
                "an engine for the state",
                lambda folder: restore(folder, ONE),
                TypeError,
                "is Engine.*engine.init",
            ),
            (
                "the folder of one checkpoint",
                _inside,
                FileNotFoundError,
                "'newest' in '.*/cycle_3'",
            ),
        ],
    )


def _inside(folder: pathlib.Path) -> Any:
    save_three(folder)
    return mlox.restore(folder / "run" / "checkpoints" / "cycle_3", ONE.init())


def _old(folder: pathlib.Path) -> Any:
    (folder / "run" / "3" / "arrays").mkdir(parents=True)
    (folder / "run" / "3" / "arrays" / "bytes").write_bytes(b"")
    return mlox.restore(folder / "run", ONE.init())


def _resumed() -> list[Case]:
    def resume(
        folder: pathlib.Path, engine: Any = ONE, data: Any = None, **o: Any
    ) -> Any:
        options = {"train_iters": 6, "resume": True, **o}
        return run_engine(engine, data, checkpoint=save_three(folder), **options)

    return table(
        "engine.run: resume",
        [
            (
                "another graph",
                lambda folder: resume(folder, pair()),
                ValueError,
                '_3.*problems.*"penalty"',
            ),
            (
                "another optimizer",
                lambda folder: resume(folder, ADAM),
                ValueError,
                r"_3'.*fit.opt_state.0.mu.*float32\[2\]",
            ),
            (
                "other unroll_steps",
                lambda folder: resume(folder, single(unroll_steps=3)),
                ValueError,
                '_3.*unroll_steps.*"fit": 1.*"fit": 3',
            ),
            (
                "another metric",
                lambda folder: resume(folder, _measuring()),
                mlox.RunError,
                "cycle 3.*fit/norm.*losses",
            ),
            (
                "fewer cycles than are behind",
                lambda folder: resume(folder, train_iters=2),
                ValueError,
                "train_iters.* 2, .*cycle 3",
            ),
            (
                "a score of another name",
                _rescored,
                mlox.RunError,
                "cycle 4.*'validation/accuracy'.*'validation/error'.*same names",
            ),
            (
                "a table that was tampered with",
                _tampered,
                ValueError,
                "'one,0.5'.*cycle",
            ),
            (
                "series of another kind",
                _reordered,
                ValueError,
                "'fit'.*mlox.together.*same data",
            ),
        ],
    )


def _measuring() -> mlox.Engine:
    def loss(params: Any, batch: Any, ctx: Any) -> Any:
        return {"loss": jnp.sum(params**2), "norm": jnp.max(params)}

    return single(loss_fn=loss)


def _rescored(folder: pathlib.Path) -> Any:
    checkpoint = save_three(folder, validation=lambda state: {"error": 0.5})
    return run_engine(
        ONE,
        train_iters=6,
        resume=True,
        checkpoint=checkpoint,
        validation=lambda state: {"accuracy": 0.5},
    )


def _tampered(folder: pathlib.Path) -> Any:
    table = folder / "metrics.csv"
    checkpoint = save_three(folder, loggers=[mlox.csv_logger(table)])
    table.write_text("cycle,fit/loss\none,0.5\n")
    loggers = [mlox.csv_logger(table)]
    return run_engine(
        ONE, train_iters=6, resume=True, checkpoint=checkpoint, loggers=loggers
    )


def _reordered(folder: pathlib.Path) -> Any:
    """Resume with `together` where a list was."""
    engine = pair()
    checkpoint = mlox.Checkpoint(folder / "run", every=1, async_=False)
    run_engine(engine, {"fit": [BATCH]}, checkpoint=checkpoint)
    data = {"fit": mlox.together([BATCH], np.ones((1, 2), np.float32).tolist())}
    return run_engine(engine, data, train_iters=6, resume=True, checkpoint=checkpoint)
