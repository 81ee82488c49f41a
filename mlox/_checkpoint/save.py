"""Write checkpoints in the background, and delete older ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from mlox._checkpoint.folder import (
    FORMAT,
    RUN,
    STATE,
    CheckpointFolder,
    with_checksum,
)
from mlox._checkpoint.leaves import fetch, name_leaves
from mlox._checkpoint.options import Checkpoint, find_best
from mlox._sharding.multihost import is_on_any_process
from mlox._utils.types import PyTree, Scalars
from mlox._utils.warn import warn


@dataclass(frozen=True, eq=False)
class CheckpointWriter:
    """A folder of checkpoints, open for writing.

    Attributes:
        checkpoint: The options of the user.
        metadata: The description of the engine.
        checkpointer: That of Orbax; see `mlox._checkpoint.orbax`.
    """

    checkpoint: Checkpoint
    metadata: Mapping[str, Any]
    checkpointer: Any

    def save(
        self,
        cycle: int,
        trees: Mapping[str, PyTree],
        notes: Mapping[str, Any],
        scalars: Scalars,
    ) -> None:
        """Begin to save; the arrays may be donated after this returns.

        Args:
            cycle: The number of finished cycles.
            trees: The "state", and other pytrees that the rest of the run depends on.
            notes: Other values that the run depends on, for JSON.
            scalars: The scalars that were logged, by which the best one is chosen.
        """
        self._finish()
        folder = CheckpointFolder(self.checkpoint.path)
        if is_on_any_process(folder.is_taken(cycle)):
            warn(
                f"Cycle {cycle} is not saved: no run of mlox has saved what is at "
                f"{str(folder.locate(cycle))!r}, and it is left alone."
            )
            return
        whole_notes = {
            "scalars": {name: float(value) for name, value in scalars.items()},
            "best": [self.checkpoint.best, self.checkpoint.mode],
            "engine": dict(self.metadata),
            "run": dict(notes),
        }
        write(self.checkpointer, folder, cycle, trees, whole_notes)
        if not self.checkpoint.async_:
            self._finish()

    def close(self) -> None:
        """Wait until everything is written, and delete older checkpoints."""
        try:
            self._finish()
        finally:
            self.checkpointer.close()

    def _finish(self) -> None:
        """Wait for the checkpoint that is being written, and delete older ones."""
        self.checkpointer.wait_until_finished()
        if jax.process_index() == 0:
            prune(self.checkpoint)


def open_writer(
    checkpoint: Checkpoint, metadata: Mapping[str, Any]
) -> CheckpointWriter:
    """Open a folder for the checkpoints of a run; the writer must be closed."""
    from mlox._checkpoint import orbax as _orbax

    return CheckpointWriter(checkpoint, metadata, _orbax.open_checkpointer())


def write(
    checkpointer: Any,
    folder: CheckpointFolder,
    cycle: int,
    trees: Mapping[str, PyTree],
    notes: Mapping[str, Any],
) -> None:
    """Begin to write a checkpoint in the format that `mlox._checkpoint.read` reads.

    Args:
        checkpointer: That of Orbax; see `mlox._checkpoint.orbax`.
        folder: Where to.
        cycle: The number of finished cycles.
        trees: The "state", and other pytrees.
        notes: The "scalars", the "best", the "engine" and the notes of the "run".
    """
    from mlox._checkpoint import orbax as _orbax

    others = {name: tree for name, tree in trees.items() if name != STATE}
    arrays, leaves = fetch(name_leaves({STATE: trees[STATE], RUN: others}))
    whole_notes = {"format": FORMAT, "cycle": cycle, "leaves": leaves, **notes}
    # Orbax writes no arrays of size zero.
    full = {name: array for name, array in arrays.items() if array.size}
    _orbax.write(checkpointer, folder.locate(cycle), full, with_checksum(whole_notes))


def prune(checkpoint: Checkpoint) -> None:
    """Delete all checkpoints except for the newest ones and the best one."""
    folder = CheckpointFolder(checkpoint.path)
    older = folder.cycles[: -checkpoint.keep]
    if older and checkpoint.best is not None:
        notes = folder.read_all_notes(lambda _: None)
        best = find_best(checkpoint, {n: note["scalars"] for n, note in notes.items()})
        older = [cycle for cycle in older if cycle != best]
    for cycle in older:
        folder.remove(cycle)


def clean(checkpoint: Checkpoint, newest: int | None) -> None:
    """Reset a folder to its newest intact checkpoint, from which a run is resumed.

    Damaged checkpoints are renamed: later ones, which the run saves again, and older
    ones whose notes cannot be read. Unfinished ones are deleted.
    """
    folder = CheckpointFolder(checkpoint.path)
    folder.remove_unfinished()
    if newest is not None:
        for cycle in folder.cycles:
            if cycle > newest:
                folder.quarantine(cycle)

        def tell(message: str) -> None:
            warn(f"{message} It is set aside.")

        for cycle in set(folder.cycles) - set(folder.read_all_notes(tell)):
            folder.quarantine(cycle)
        prune(checkpoint)
    folder.warn_of_others()
