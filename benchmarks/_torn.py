"""Faults of checkpoints: files that are torn, emptied, changed or gone."""

from __future__ import annotations

import pathlib
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from _bad_checkpoints import ONE, saved
from _fault import Fault, Handled, of_area
from _small import ran

import mlox


def emptied(file: pathlib.Path) -> None:
    file.write_bytes(b"")


def cut(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(bytes(data))


def gone(file: pathlib.Path) -> None:
    file.unlink()


DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
    "emptied": emptied,
    "cut in half": cut,
    "changed": flipped,
    "gone": gone,
}


def cases() -> list[Fault]:
    return [*_files(), *_folders()]


def _files() -> list[Fault]:
    def damaged(kind: str) -> Callable[[pathlib.Path], Handled]:
        return lambda folder: _damaged(folder, kind)

    return of_area(
        "Checkpoints: a file of the newest one that is emptied, cut in half, changed "
        "by a bit, or gone",
        [(f"`{kind}`", damaged(kind)) for kind in _kinds()],
    )


def _kinds() -> list[str]:
    """List the kinds of files in a checkpoint, with `*` for names by content."""
    with tempfile.TemporaryDirectory() as name:
        saved(pathlib.Path(name))
        newest = pathlib.Path(name, "run", "3")
        files = [str(f.relative_to(newest)) for f in newest.rglob("*") if f.is_file()]
    return sorted({re.sub(r"[0-9a-f]{32}", "*", file) for file in files})


def _damaged(folder: pathlib.Path, kind: str) -> Handled:
    """Damage a file of the newest of three checkpoints, and resume."""
    saved(folder)
    found: dict[Handled, list[str]] = {}
    for i, (name, damage) in enumerate(DAMAGES.items()):
        copy = shutil.copytree(folder / "run", folder / str(i) / "run")
        damage(min((copy / "3").glob(kind)))
        checkpoint = mlox.Checkpoint(copy, every=1, async_=False)
        what = Handled(*(text.replace(f"/{i}/", "/") for text in _resumed(checkpoint)))
        found.setdefault(what, []).append(name)
    if len(found) == 1:
        return next(iter(found))
    return Handled(
        *(
            "; ".join(f"{', '.join(d)}: {h[i]}" for h, d in found.items())
            for i in (0, 1)
        )
    )


def _resumed(checkpoint: mlox.Checkpoint) -> Handled:
    """Resume until the fourth cycle, and compare with a run in one go."""
    with warnings.catch_warnings(record=True) as came:
        warnings.simplefilter("always")
        try:
            state, history = ran(ONE, train_iters=4, checkpoint=checkpoint, resume=True)
        except (ValueError, mlox.RunError) as error:
            return Handled(f"{type(error).__name__}: {_short(error)}", "-")
    whole, other = ran(ONE, train_iters=4)
    equal = np.array_equal(state["fit"].params, whole["fit"].params)
    equal &= history["cycle"].tolist() == other["cycle"].tolist()
    warned = "; ".join(f"warns: {_short(w.message)}" for w in came)
    ends = "all: it ends as one run does, bit for bit" if equal else "elsewhere"
    return Handled(warned or "goes on without a word", ends)


def _short(error: Any) -> str:
    """Leave out what differs from library to library: the cause in brackets."""
    return re.sub(
        r" \([A-Za-z]+(Error|Exception): .*?\)\.", ".", str(error), flags=re.S
    )


def _folders() -> list[Fault]:
    def resumed(
        harm: Callable[[pathlib.Path], Any],
    ) -> Callable[[pathlib.Path], Handled]:
        def do(folder: pathlib.Path) -> Handled:
            checkpoint = saved(folder)
            harm(folder / "run")
            return _resumed(checkpoint)

        return do

    return of_area(
        "Checkpoints: the folder",
        [
            (
                "nothing to resume",
                lambda folder: _resumed(mlox.Checkpoint(folder / "run", every=1)),
            ),
            (
                "the arrays of the newest are gone",
                resumed(lambda run: shutil.rmtree(run / "3" / "arrays")),
            ),
            ("the newest is empty", resumed(_hollow)),
            ("the newest is gone", resumed(lambda run: shutil.rmtree(run / "3"))),
            (
                "the two newest are torn",
                resumed(
                    lambda run: [cut(run / c / "notes" / "metadata") for c in "23"]
                ),
            ),
            (
                "all are torn",
                resumed(
                    lambda run: [cut(run / c / "notes" / "metadata") for c in "123"]
                ),
            ),
            ("one that was being written", resumed(_unfinished)),
            (
                "a file of somebody else",
                resumed(lambda run: (run / "README.txt").write_text("mine")),
            ),
            ("a folder of somebody else", resumed(lambda run: (run / "old").mkdir())),
            ("a folder called 9, empty", resumed(lambda run: (run / "9").mkdir())),
        ],
    )


def _hollow(run: pathlib.Path) -> None:
    shutil.rmtree(run / "3")
    (run / "3").mkdir()


def _unfinished(run: pathlib.Path) -> None:
    shutil.copytree(run / "3", run / "4.orbax-checkpoint-tmp")
