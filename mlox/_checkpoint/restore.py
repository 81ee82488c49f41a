"""A folder of checkpoints as it is read: nothing in it is changed."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlox._checkpoint.arrays import (
    BYTES,
    NOTES,
    Arrays,
    Leaf,
    filled,
    flattened,
    unpacked,
)
from mlox._checkpoint.options import Checkpoint, check_wanted
from mlox._utils.types import PyTree

FORMAT = 2


class Snapshot(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        cycle: The cycles behind it.
        arrays: Trees of arrays by name when it is saved; arrays by name and path, as
            `flattened` gives them, when it was read.
        notes: What JSON holds besides.
    """

    cycle: int
    arrays: Mapping[str, PyTree]
    notes: Mapping[str, Any]


class BrokenError(ValueError):
    """A checkpoint that is not whole."""


@dataclass(frozen=True)
class Archive:
    """A folder of checkpoints, open for reading.

    Orbax writes a checkpoint beside its place: one whose name is a number is whole,
    unless its files were damaged later.

    Attributes:
        path: The folder.
    """

    path: pathlib.Path

    @property
    def cycles(self) -> list[int]:
        """The checkpoints that there are, the oldest first."""
        if not self.path.is_dir():
            return []
        names = [entry.name for entry in self.path.iterdir() if entry.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def folder(self, cycle: int) -> pathlib.Path:
        """Return where a checkpoint is."""
        return self.path / str(cycle)

    def notes(self, cycle: int) -> dict[str, Any]:
        """Read the notes of a checkpoint, or raise a `BrokenError`."""
        with _whole(self.folder(cycle)):
            file = self.folder(cycle) / "notes" / NOTES
            text = file.read_bytes()
            notes = json.loads(text)["notes"]
            if notes["format"] != FORMAT:
                raise ValueError(f"its format is {notes['format']}, not {FORMAT}")
            if text != sealed(notes):
                raise ValueError("its notes are not those saved")
            return notes

    def score(self, cycle: int) -> float | None:
        """Read the score of a checkpoint; None if it has none, or is broken."""
        with contextlib.suppress(BrokenError):
            return self.notes(cycle)["score"]
        return None

    def newest(
        self, templates: Mapping[str, PyTree], about: Mapping[str, Any]
    ) -> Snapshot | None:
        """Read the newest checkpoint that is whole, with a warning of others.

        Args:
            templates: Trees like those that were saved, of those names that matter.
            about: The description of the engine, for comparison; empty for none.

        Returns:
            The snapshot; None if there is no checkpoint.

        Raises:
            ValueError: If it is of another engine, or none is whole.
        """
        broken: list[str] = []
        for cycle in reversed(self.cycles):
            try:
                found = self.read(cycle, templates, about)
            except BrokenError as error:
                broken.append(str(error))
                continue
            for message in broken:
                warnings.warn(
                    f"{message} The one after cycle {cycle} is taken.", stacklevel=2
                )
            return found
        if broken:
            raise ValueError(f"No checkpoint is whole. {' '.join(broken)}")
        return None

    def read(
        self, cycle: int, templates: Mapping[str, PyTree], about: Mapping[str, Any]
    ) -> Snapshot:
        """Read a checkpoint.

        Args:
            cycle: Which.
            templates: As for `newest`.
            about: As for `newest`.

        Returns:
            The snapshot.

        Raises:
            BrokenError: If it is not whole.
            ValueError: If it is of another engine.
        """
        folder, like = self.folder(cycle), flattened(templates)
        notes = self.notes(cycle)
        leaves = {path: Leaf(*leaf) for path, leaf in notes["leaves"].items()}
        there = {n: x for n, x in leaves.items() if n.split("|")[0] in templates}
        _check(folder, _differences(about, notes["about"], there, like))
        with _whole(folder):
            data = np.fromfile(folder / "arrays" / BYTES, np.uint8)
            arrays = unpacked(leaves, data) | _sharded(folder, leaves, like)
        return Snapshot(notes["cycle"], arrays, notes["notes"])

    def best(self) -> int | None:
        """Return the checkpoint with the best score, with a warning of broken ones."""
        scores: dict[int, float | None] = {}
        for cycle in self.cycles:
            try:
                scores[cycle] = self.notes(cycle)["score"]
            except BrokenError as error:
                warnings.warn(f"{error} It is left out.", stacklevel=2)
        return best_of(scores)


def best_of(scores: Mapping[int, float | None]) -> int | None:
    """Return the first cycle with the least score, or None if there is no score."""
    found = {cycle: score for cycle, score in scores.items() if score is not None}
    return min(found, key=lambda cycle: (found[cycle], cycle), default=None)


def sealed(notes: Mapping[str, Any]) -> bytes:
    """Return notes as JSON, with their checksum."""
    text = json.dumps(notes)
    return f'{{"checksum": {zlib.crc32(text.encode())}, "notes": {text}}}'.encode()


def restore(
    directory: str | os.PathLike[str],
    state: PyTree,
    *,
    cycle: int | Literal["newest", "best"] = "newest",
) -> PyTree:
    """Read the state of a checkpoint of a run, which may still be going on.

    Nothing in the folder is changed.

    Args:
        directory: The folder that `mlox.Checkpoint` was given.
        state: A state like the one that was saved, e.g. `engine.init()`: its structure,
            shapes, dtypes and devices are taken.
        cycle: The newest whole checkpoint, the best one by the `best` of the
            `mlox.Checkpoint`, or the one after a number of cycles.

    Returns:
        The state that was saved.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the state is of another kind, with a list of the differences, or
            what was asked for is not whole.

    Example:
        >>> import tempfile, jax.numpy as jnp, mlox, optax
        >>> problem = mlox.Problem.create(
        ...     name="x", params=jnp.ones(()), tx=optax.sgd(0.25),
        ...     loss_fn=lambda params, batch, ctx: params**2)
        >>> engine = mlox.Engine([problem])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = engine.run(engine.init(), train_iters=2, loggers=(),
        ...                    checkpoint=mlox.Checkpoint(folder, every=1))
        ...     states = [mlox.restore(folder, engine.init(), cycle=i) for i in (1, 2)]
        >>> [float(state["x"].params) for state in states]
        [0.5, 0.25]
    """
    check_wanted(cycle, state)
    archive = Archive(Checkpoint(directory).path)
    if not archive.path.is_dir():
        raise FileNotFoundError(f"No checkpoints: {str(archive.path)!r} is no folder.")
    templates, found = {"state": state}, None
    if cycle == "newest":
        found = archive.newest(templates, {})
    else:
        which = archive.best() if cycle == "best" else cycle
        if which in archive.cycles:
            found = archive.read(which, templates, {})
    if found is None:
        raise FileNotFoundError(
            f"No checkpoint {cycle!r} in {str(archive.path)!r}: there are "
            f"{archive.cycles}."
        )
    return filled("state", state, found.arrays)


def _differences(
    here: Mapping[str, Any],
    about: Mapping[str, Any],
    there: Mapping[str, Leaf],
    like: Mapping[str, Any],
) -> list[str]:
    """List in what a checkpoint differs from the engine and the state at hand."""
    differences = [
        f"{key}: {about.get(key)!r} there, {value!r} here"
        for key, value in here.items()
        if about.get(key) != value
    ]
    old = {path: f"{leaf.dtype}{leaf.shape}" for path, leaf in there.items()}
    new = {path: f"{x.dtype}{list(x.shape)}" for path, x in like.items()}
    for path in sorted({*old, *new}):
        sides = old.get(path, "nothing"), new.get(path, "nothing")
        if sides[0] != sides[1]:
            name = path.removeprefix("state|")
            differences.append(f"{name}: {sides[0]} there, {sides[1]} here")
    return differences


def _check(folder: pathlib.Path, differences: list[str]) -> None:
    """Refuse a checkpoint of another engine."""
    if differences:
        shown = "\n  ".join(differences[:20])
        more = f"\n  and {len(differences) - 20} more" if differences[20:] else ""
        raise ValueError(
            f"Checkpoint {str(folder)!r} is of another engine or state:\n  "
            f"{shown}{more}\nGo on with the engine and the state with which the "
            "run began, or choose another directory."
        )


def _sharded(
    folder: pathlib.Path, leaves: Mapping[str, Leaf], like: Mapping[str, Any]
) -> Arrays:
    """Read the arrays that no process has whole, as the shards of this process."""
    apart = [path for path, leaf in leaves.items() if leaf.checksum is None]
    if not apart:
        return {}
    from mlox._checkpoint import orbax as _orbax

    def target(path: str) -> Any:
        x = like.get(path)
        if not isinstance(x, jax.Array):  # a state besides: it is placed by `filled`
            leaf = leaves[path]
            return np.broadcast_to(np.zeros((), jnp.dtype(leaf.dtype)), leaf.shape)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

    return _orbax.restored(folder, {path: target(path) for path in apart})


@contextlib.contextmanager
def _whole(folder: pathlib.Path) -> Iterator[None]:
    """Turn whatever goes wrong when a checkpoint is read into one kind of error."""
    try:
        yield
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:200]
        raise BrokenError(
            f"Checkpoint {str(folder)!r} is broken ({type(error).__name__}: {first})."
        ) from error
