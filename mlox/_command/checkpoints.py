"""`python -m mlox checkpoints`: list checkpoints, describe one, compare two.

Nothing is written: what a run has saved stays as it is.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlox._check.table import BYTES_UNITS, format_table, show_unit
from mlox._checkpoint.folder import NOTES, CheckpointFolder, DamagedError
from mlox._checkpoint.read import Restored, read
from mlox._utils.describe import count

MOST = 40  # differences that are shown


class PathError(ValueError):
    """A path is not what the command expects."""


class OneCheckpoint(CheckpointFolder):
    """A checkpoint at any place: its `parent` is its own folder."""

    def locate(self, cycle: int) -> pathlib.Path:
        """Return the folder of the checkpoint, whatever its cycle."""
        del cycle
        return self.parent


def add_to(commands: Any) -> None:
    """Add the command to a parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "checkpoints",
        help="list checkpoints, describe one, or compare two",
        description="List the checkpoints of a run, describe one, or compare two (of a "
        "run's folder its newest one). The program that wrote them is not needed. "
        "Nothing is written.",
        epilog="examples: python -m mlox checkpoints runs/fit; "
        "python -m mlox checkpoints runs/fit/checkpoints/cycle_500; "
        "python -m mlox checkpoints runs/fit runs/other",
    )
    parser.add_argument(
        "path", type=pathlib.Path, help="the folder of a run, or of one checkpoint"
    )
    parser.add_argument(
        "other", type=pathlib.Path, nargs="?", help="another one to compare it with"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """List, describe or compare."""
    if options.other is not None:
        paths = [find_one(path) for path in (options.path, options.other)]
        lines = compare(*paths)
    elif _is_checkpoint(options.path):
        lines = describe(options.path)
    else:
        lines = list_all(options.path)
    print("\n".join(lines))
    return 0


def list_all(path: pathlib.Path) -> list[str]:
    """Return a table of the checkpoints of a run."""
    rows = [_row(entry) for entry in _entries(path)]
    header = ["folder", "date", "size", "problems", "state"]
    return [f"checkpoints in {str(path)!r}", *format_table(header, rows)]


def describe(path: pathlib.Path) -> list[str]:
    """Return the tree, the metrics and the graph of a checkpoint, which is verified."""
    found, notes = _read(path)
    state = {n: x for n, x in found.arrays.items() if n.startswith("state.")}
    size = sum(x.nbytes for x in found.arrays.values())
    engine: Mapping[str, Any] = notes["engine"] or {}
    edges = [
        f"{kind}: {start} -> {end}"
        for kind in ("u2l", "l2u")
        for start, end in engine.get(kind, [])
    ]
    leaves = [
        [name.removeprefix("state."), f"{x.dtype}[{','.join(map(str, x.shape))}]"]
        for name, x in state.items()
    ]
    metrics = [[name, f"{value:.6g}"] for name, value in notes["scalars"].items()]
    return [
        f"checkpoint {str(path)!r}: cycle {notes['cycle']}, format {notes['format']}, "
        f"{_date(path)}",
        f"  intact: {count(len(found.arrays), 'array')}, "
        f"{show_unit(float(size), BYTES_UNITS)}, all checksums agree",
        f"  problems: {', '.join(_problems(notes))}",
        *(f"  {edge}" for edge in edges),
        "",
        *format_table(["leaf of the state", "array"], leaves),
        *(["", *format_table(["metric", "value"], metrics)] if metrics else []),
    ]


def compare(first: pathlib.Path, second: pathlib.Path) -> list[str]:
    """Return how the states of two checkpoints differ."""
    (a, _), (b, _) = _read(first), _read(second)
    ours, theirs = (
        {n.removeprefix("state."): x for n, x in c.arrays.items() if n[:6] == "state."}
        for c in (a, b)
    )
    lines = [f"first:  {str(first)!r}", f"second: {str(second)!r}"]
    for name, only in (
        ("first", ours.keys() - theirs),
        ("second", theirs.keys() - ours),
    ):
        lines += _cut([f"  only in the {name}: {leaf}" for leaf in sorted(only)])
    rows: list[list[str]] = []
    kinds: list[str] = []
    both = [name for name in ours if name in theirs]
    for name in both:
        x, y = ours[name], theirs[name]
        if (x.dtype, x.shape) != (y.dtype, y.shape):
            kinds.append(
                f"  {name}: {x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}"
            )
        elif x.tobytes() != y.tobytes():
            rows.append([name, *_distance(x, y)])
    lines += _cut(kinds)
    if rows:
        table = format_table(["leaf", "largest difference", "relative"], rows)
        lines += [table[0], *_cut(table[1:])]
    equal = len(both) - len(kinds) - len(rows)
    return [*lines, f"  equal, bit for bit: {equal} of {len(both)} common leaves"]


def find_one(path: pathlib.Path) -> pathlib.Path:
    """Return a checkpoint: the path itself, or the newest one of a run."""
    if _is_checkpoint(path):
        return path
    whole = [entry for entry in _entries(path) if _is_checkpoint(entry)]
    if not whole:
        raise PathError(f"{str(path)!r} has no complete checkpoint to compare.")
    return whole[-1]


def _is_checkpoint(path: pathlib.Path) -> bool:
    return (path / NOTES).is_dir() and ".orbax-checkpoint-tmp" not in path.name


def _entries(path: pathlib.Path) -> list[pathlib.Path]:
    """Return what runs have left in a folder: checkpoints, whole or not."""
    if not path.is_dir():
        raise PathError(
            f"{str(path)!r} is not a folder; expected the `directory` of a "
            "mlox.Checkpoint, or one checkpoint in it."
        )
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    named = (
        (int(match[1]), entry)
        for entry in folder.iterdir()
        if (match := re.match(r"(?:cycle_|broken-)(\d+)", entry.name))
    )
    found = [entry for _, entry in sorted(named)]
    if not found:
        inside = sorted(entry.name for entry in folder.iterdir())[:5]
        raise PathError(
            f"{str(path)!r} has no checkpoint of mlox, only {inside}; expected folders "
            "such as 'checkpoints/cycle_500'. Pass the folder of a mlox.Checkpoint."
        )
    return found


def _row(path: pathlib.Path) -> list[str]:
    files = [file for file in path.rglob("*") if file.is_file()]
    size = show_unit(float(sum(file.stat().st_size for file in files)), BYTES_UNITS)
    problems, state = "", "torn: unfinished"
    if path.name.startswith("broken-"):
        state = "broken, set aside"
    elif _is_checkpoint(path):
        try:
            problems = ", ".join(_problems(OneCheckpoint(path).read_notes(0)))
            state = "complete"
        except DamagedError:
            state = "broken: notes"
    if len(problems) > 20:
        problems = f"{problems[:19]}…"
    return [path.name, _date(path), size, problems, state]


def _date(path: pathlib.Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))


def _problems(notes: Mapping[str, Any]) -> list[str]:
    if notes["engine"]:
        return list(notes["engine"]["problems"])
    names = (name.split(".")[1] for name in notes["leaves"] if name[:6] == "state.")
    return list(dict.fromkeys(names))


def _read(path: pathlib.Path) -> tuple[Restored, Mapping[str, Any]]:
    """Read and verify a checkpoint."""
    folder = OneCheckpoint(path.absolute())
    found = read(folder, 0, lambda saved: {name: (name, None) for name in saved.leaves})
    return found, folder.read_notes(0)


def _distance(x: np.ndarray, y: np.ndarray) -> list[str]:
    """Return the largest difference, and the norm of it relative to the first."""
    # Of 64 bits of mantissa, so that large integers keep their last one.
    kind = np.clongdouble if np.iscomplexobj(x) else np.longdouble
    x, y = x.astype(kind).ravel(), y.astype(kind).ravel()
    known = np.isfinite(x) & np.isfinite(y)
    size, away = np.abs(x[known]), np.abs((x - y)[known])
    largest = float(away.max(initial=0.0))
    norms = float(np.sqrt((away**2).sum())), float(np.sqrt((size**2).sum()))
    relative = norms[0] and (norms[0] / norms[1] if norms[1] else np.inf)
    unknown = f", {(~known).sum():,} not finite" if not known.all() else ""
    return [f"{largest:.3g}{unknown}", f"{relative:.3g}"]


def _cut(lines: list[str]) -> list[str]:
    more = len(lines) - MOST
    return [*lines[:MOST], f"  and {more} more"] if more > 0 else lines
