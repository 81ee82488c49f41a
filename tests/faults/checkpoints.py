"""Faults of checkpoints: files that are torn, emptied, changed or gone."""

from __future__ import annotations

import pathlib
import re
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import mlox

from ..bad_inputs.checkpoints import ONE, save_three
from ..small import run_engine
from .fault import Fault, Outcome, table


def empty(file: pathlib.Path) -> None:
    file.write_bytes(b"")


def cut(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(bytes(data))


def remove(file: pathlib.Path) -> None:
    file.unlink()


CHECKPOINTS = pathlib.Path("checkpoints")
NEWEST = CHECKPOINTS / "cycle_3"

DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
    "emptied": empty,
    "cut in half": cut,
    "changed": flip,
    "gone": remove,
}

EQUAL = "^all: .*bit for bit"
SILENT = "^goes on silently$"
BACK = "^warns: .*'FOLDER/run/checkpoints/cycle_3'.*cycle 2"
EITHER = f"{SILENT}|cycle_3.*cycle 2 is taken"

# Every file of a checkpoint (`*` for names by content), and what mlox must do if it is
# damaged. Files that hold nothing that is read do not matter.
FILES = {
    "_CHECKPOINT_METADATA": SILENT,
    "commit_success.txt": SILENT,
    "mlox/commit_success.txt": SILENT,
    "mlox/metadata": BACK,
    **{
        f"{item}/{file}": action
        for item in ("run", "state")
        for file, action in {
            "_METADATA": EITHER,  # Orbax does without it if it is gone
            "commit_success.txt": SILENT,
            "d/*": BACK,
            "manifest.ocdbt": BACK,
            "ocdbt.process_0/d/*": EITHER,
            "ocdbt.process_0/manifest.ocdbt": EITHER,
        }.items()
    },
}


def faults() -> list[Fault]:
    return [*_files(), *_folders()]


def _files() -> list[Fault]:
    def damage(kind: str) -> Callable[[pathlib.Path], Outcome]:
        return lambda folder: _damage(folder, kind)

    return table(
        "Checkpoints: a file of the newest one that is emptied, cut in half, changed "
        "by a bit, or gone",
        [(f"`{kind}`", damage(kind), action, EQUAL) for kind, action in FILES.items()],
    )


def files_of(checkpoint: pathlib.Path) -> list[str]:
    """List the files of a checkpoint, with `*` for names by content."""
    files = [file for file in checkpoint.rglob("*") if file.is_file()]
    names = {str(file.relative_to(checkpoint)) for file in files}
    return sorted({re.sub(r"[0-9a-f]{32}", "*", name) for name in names})


def _damage(folder: pathlib.Path, kind: str) -> Outcome:
    """Damage a file of the newest of three checkpoints, and resume."""
    save_three(folder)
    found: dict[Outcome, list[str]] = {}
    for i, (name, damage) in enumerate(DAMAGES.items()):
        copy = shutil.copytree(folder / "run", folder / str(i) / "run")
        damage(min((copy / NEWEST).glob(kind)))
        checkpoint = mlox.Checkpoint(copy, every=1, async_=False)
        what = Outcome(*(text.replace(f"/{i}/", "/") for text in _resumed(checkpoint)))
        found.setdefault(what, []).append(name)
    return Outcome(*(_join([(d, x[i]) for x, d in found.items()]) for i in (0, 1)))


def _join(seen: list[tuple[list[str], str]]) -> str:
    """Return what followed all damages, or what followed which."""
    if len({text for _, text in seen}) == 1:
        return seen[0][1]
    return "; ".join(f"{', '.join(damages)}: {text}" for damages, text in seen)


def _resumed(checkpoint: mlox.Checkpoint) -> Outcome:
    """Resume until the fourth cycle, and compare with a run in one go."""
    with warnings.catch_warnings(record=True) as came:
        warnings.simplefilter("always")
        try:
            state, history = run_engine(
                ONE, train_iters=4, checkpoint=checkpoint, resume=True
            )
        except (ValueError, mlox.RunError) as error:
            return Outcome(f"{type(error).__name__}: {_short(error)}", "-")
    whole, other = run_engine(ONE, train_iters=4)
    equal = np.array_equal(state["fit"].params, whole["fit"].params)
    equal &= history["cycle"].tolist() == other["cycle"].tolist()
    warned = "; ".join(f"warns: {_short(w.message)}" for w in came)
    ends = "all: it ends as one run does, bit for bit" if equal else "elsewhere"
    return Outcome(warned or "goes on silently", ends)


def _short(error: Any) -> str:
    """Leave out what differs from library to library: the cause in brackets."""
    return re.sub(
        r" \([A-Za-z]+(Error|Exception): .*?\)\.", ".", str(error), flags=re.S
    )


def _folders() -> list[Fault]:
    def resumed(
        harm: Callable[[pathlib.Path], Any],
    ) -> Callable[[pathlib.Path], Outcome]:
        def do(folder: pathlib.Path) -> Outcome:
            checkpoint = save_three(folder)
            harm(folder / "run")
            return _resumed(checkpoint)

        return do

    return table(
        "Checkpoints: the folder",
        [
            (
                "nothing to resume",
                lambda folder: _resumed(mlox.Checkpoint(folder / "run", every=1)),
                SILENT,
                EQUAL,
            ),
            (
                "the arrays of the newest are gone",
                resumed(lambda run: shutil.rmtree(run / NEWEST / "state")),
                BACK,
                EQUAL,
            ),
            (
                "the newest is empty",
                resumed(_hollow),
                BACK,
                EQUAL,
            ),
            (
                "the newest is gone",
                resumed(lambda run: shutil.rmtree(run / NEWEST)),
                SILENT,
                EQUAL,
            ),
            (
                "the two newest are torn",
                resumed(lambda run: [cut(notes_of(run, cycle)) for cycle in (2, 3)]),
                "warns: .*cycle_3'.*cycle 1.*cycle_2'.*cycle 1",
                EQUAL,
            ),
            (
                "all are torn",
                resumed(lambda run: [cut(notes_of(run, cycle)) for cycle in (1, 2, 3)]),
                "ValueError: .*cycle_3'.*cycle_2'.*cycle_1'",
                "-",
            ),
            ("one that was being written", resumed(_unfinished), SILENT, EQUAL),
            (
                "a file of somebody else",
                resumed(lambda run: (run / "README.txt").write_text("mine")),
                SILENT,
                EQUAL,
            ),
            (
                "a folder of somebody else",
                resumed(lambda run: (run / "old").mkdir()),
                SILENT,
                EQUAL,
            ),
            (
                "a folder called 9",
                resumed(lambda run: (run / "9").mkdir()),
                SILENT,
                EQUAL,
            ),
            (
                "a folder called checkpoints/cycle_9, empty",
                resumed(lambda run: (run / CHECKPOINTS / "cycle_9").mkdir()),
                "warns: 'FOLDER/run/checkpoints' holds 'cycle_9'.*left alone",
                EQUAL,
            ),
        ],
    )


def notes_of(run: pathlib.Path, cycle: int) -> pathlib.Path:
    return run / CHECKPOINTS / f"cycle_{cycle}" / "mlox" / "metadata"


def _hollow(run: pathlib.Path) -> None:
    shutil.rmtree(run / NEWEST)
    (run / NEWEST / "mlox").mkdir(parents=True)


def _unfinished(run: pathlib.Path) -> None:
    unfinished = run / CHECKPOINTS / "cycle_4.orbax-checkpoint-tmp"
    shutil.copytree(run / NEWEST, unfinished)
