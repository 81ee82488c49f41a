"""Bad saves of loops of the user's own."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np

import mlox

from ..small import run_engine
from .case import Case, table
from .checkpoints import ONE, save_three


def cases() -> list[Case]:
    def save(folder: pathlib.Path, state: Any = None, cycle: Any = 1) -> Any:
        return mlox.save(folder, ONE.init() if state is None else state, cycle=cycle)

    return table(
        "save",
        [
            ("no state", lambda folder: save(folder, {}), ValueError, "init"),
            (
                "an engine for the state",
                lambda folder: save(folder, ONE),
                TypeError,
                "is Engine.*engine.init",
            ),
            ("a donated state", _donated, ValueError, "is .*donated.*step"),
            (
                "a number for the folder",
                lambda _: mlox.save(3, ONE.init(), cycle=1),  # type: ignore[arg-type]
                TypeError,
                "directory is 3;.*path",
            ),
            (
                "a file for the folder",
                _file,
                NotADirectoryError,
                "'FOLDER/file' is a file;.*another directory",
            ),
            ("cycle=-1", lambda f: save(f, cycle=-1), ValueError, "cycle is -1;"),
            (
                "cycle='newest'",
                lambda folder: save(folder, cycle="newest"),
                ValueError,
                "cycle is 'newest';.*number of finished cycles",
            ),
            (
                "a cycle that is saved already",
                lambda folder: [save(folder) for _ in range(2)],
                FileExistsError,
                "'FOLDER/checkpoints/cycle_1' exists;.*another directory",
            ),
            (
                "the folder of a run",
                lambda folder: mlox.save(save_three(folder).path, ONE.init(), cycle=9),
                ValueError,
                "'FOLDER/run' holds the checkpoints of a run.*another directory",
            ),
            (
                "a run that is to be resumed from it",
                _resumed,
                ValueError,
                "cycle_1' is of mlox.save.*mlox.restore",
            ),
        ],
    )


def _donated(folder: pathlib.Path) -> Any:
    state = ONE.init()
    jax.tree.map(lambda x: x.delete(), state)
    return mlox.save(folder, state, cycle=1)


def _file(folder: pathlib.Path) -> Any:
    (folder / "file").write_bytes(b"")
    return mlox.save(folder / "file", {"x": np.zeros(1)}, cycle=1)


def _resumed(folder: pathlib.Path) -> Any:
    mlox.save(folder, ONE.init(), cycle=1)
    return run_engine(ONE, checkpoint=mlox.Checkpoint(folder), resume=True)
