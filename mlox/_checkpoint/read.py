"""Read a checkpoint and verify it, or find the newest intact one."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mlox._checkpoint.folder import CheckpointFolder, DamagedError, reading
from mlox._checkpoint.leaves import Arrays, Leaf, is_spread, verify
from mlox._sharding.multihost import is_on_any_process
from mlox._utils.warn import warn


class Saved(NamedTuple):
    """A checkpoint whose arrays have not been read, as its notes describe it."""

    path: pathlib.Path
    notes: Mapping[str, Any]
    leaves: Mapping[str, Leaf]


class Restored(NamedTuple):
    """A checkpoint that has been read.

    Attributes:
        cycle: The number of finished cycles.
        arrays: By name, such as "state.classifier.params.w".
        notes: The notes of the run.
    """

    cycle: int
    arrays: Arrays
    notes: Mapping[str, Any]


Match = Callable[[Saved], Mapping[str, tuple[str, Any]]]
"""Maps a `Saved` to the arrays to read: {new name: (name in the checkpoint, an array
like it or None)}. Raises ValueError if the checkpoint does not fit."""


def read_newest(folder: CheckpointFolder, match: Match) -> Restored | None:
    """Read the newest intact checkpoint, with a warning that names damaged ones.

    Returns:
        The checkpoint; None if there is none.

    Raises:
        ValueError: If the checkpoint does not fit, or none is intact.
    """
    damaged: list[str] = []
    for cycle in reversed(folder.cycles):
        try:
            found = read(folder, cycle, match)
        except FileNotFoundError:  # deleted in the meantime
            return read_newest(folder, match)
        except DamagedError as error:
            damaged.append(str(error))
            continue
        for message in damaged:
            warn(f"{message} The one after cycle {cycle} is taken.")
        return found
    if damaged:
        raise ValueError(f"No checkpoint is intact. {' '.join(damaged)}")
    return None


def read(folder: CheckpointFolder, cycle: int, match: Match) -> Restored:
    """Read a checkpoint, or raise an error as in `reading`.

    If arrays are split over processes, all processes call this function, and it fails
    on all of them if it fails on one.
    """
    path, notes = folder.locate(cycle), folder.read_notes(cycle)
    leaves = {name: Leaf(*row) for name, row in notes["leaves"].items()}
    asked = match(Saved(path, notes, leaves))
    targets = dict(asked.values())
    found, failure = {}, None
    with reading(path):
        try:
            found = _load(path, leaves, targets)
        except Exception as error:  # raised below, once the other processes know
            failure = error
        if any(map(is_spread, targets.values())):
            elsewhere = is_on_any_process(failure is not None)
            if elsewhere and failure is None:
                failure = ValueError("another process could not read it")
        if failure is not None:
            raise failure
        verify({n: x for n, x in found.items() if is_spread(x)}, leaves)
    arrays = {here: found[there] for here, (there, _) in asked.items()}
    return Restored(cycle, arrays, notes["run"])


def _load(
    path: pathlib.Path, leaves: Mapping[str, Leaf], targets: Mapping[str, Any]
) -> Arrays:
    """Read arrays, and verify those of which this process has all parts."""
    from mlox._checkpoint import orbax as _orbax

    arrays, likes = {}, {}
    for name, like in targets.items():
        leaf = leaves[name]
        if 0 in leaf.shape:
            arrays[name] = np.zeros(leaf.shape, jnp.dtype(leaf.dtype))
        else:
            in_parts = leaf.method == "sum32" and is_spread(like)
            likes[name] = like if in_parts else None
    arrays |= _orbax.read(path, likes)
    verify({n: x for n, x in arrays.items() if not is_spread(x)}, leaves)
    return arrays
