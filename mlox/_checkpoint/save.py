"""Checkpoints as a run writes them: in the background, older ones deleted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from mlox._checkpoint.folder import (
    FORMAT,
    NOTES,
    RUN,
    STATE,
    CheckpointFolder,
    split_name,
    with_checksum,
)
from mlox._checkpoint.leaves import Arrays, fetch, name_leaves
from mlox._checkpoint.options import Checkpoint, find_best
from mlox._sharding.multihost import is_on_any_process
from mlox._utils.types import PyTree, Scalars


@dataclass(frozen=True, eq=False)
class CheckpointWriter:
    """A folder of checkpoints, open for writing.

    Attributes:
        checkpoint: The user's options.
        metadata: The description of the engine.
        checkpointer: Orbax's; see `mlox._checkpoint.orbax`.
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
        """Begin to save; the arrays may be donated once this has returned.

        Args:
            cycle: The cycles behind.
            trees: The "state", and other pytrees that the rest of the run depends on.
            notes: What JSON holds besides.
            scalars: What was logged at this point, by which the best one is chosen.
        """
        from mlox._checkpoint import orbax as _orbax

        self._finish()
        folder = CheckpointFolder(self.checkpoint.path)
        path = folder.locate(cycle)
        if is_on_any_process(folder.is_taken(cycle)):
            warnings.warn(
                f"Cycle {cycle} is not saved: no run of mlox has saved what is at "
                f"{str(path)!r}, and it is left alone.",
                stacklevel=2,
            )
            return
        arrays, leaves = fetch(name_leaves(trees))
        whole_notes = {
            "format": FORMAT,
            "cycle": cycle,
            "scalars": {name: float(value) for name, value in scalars.items()},
            "best": [self.checkpoint.best, self.checkpoint.mode],
            "engine": dict(self.metadata),
            "leaves": leaves,
            "run": dict(notes),
        }
        items: dict[str, Arrays] = {STATE: {}, RUN: {}}
        for name, array in arrays.items():
            item, within = split_name(name)
            if array.size:
                items[item][within] = array
        texts = {NOTES: with_checksum(whole_notes)}
        _orbax.write(self.checkpointer, path, items, texts)
        if not self.checkpoint.async_:
            self._finish()

    def close(self) -> None:
        """Wait until all is written, and delete what is not to stay."""
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
    """Open a folder for the checkpoints of a run.

    Args:
        checkpoint: The user's options.
        metadata: A description of the engine that JSON can hold.

    Returns:
        The writer, which must be closed.
    """
    from mlox._checkpoint import orbax as _orbax

    return CheckpointWriter(checkpoint, metadata, _orbax.open_checkpointer())


def prune(checkpoint: Checkpoint) -> None:
    """Delete the checkpoints that are neither among the newest nor the best."""
    folder = CheckpointFolder(checkpoint.path)
    older = folder.cycles[: -checkpoint.keep]
    if older and checkpoint.best is not None:
        notes = folder.read_all_notes(lambda _: None)
        best = find_best(checkpoint, {n: note["scalars"] for n, note in notes.items()})
        older = [cycle for cycle in older if cycle != best]
    for cycle in older:
        folder.remove(cycle)


def clean(checkpoint: Checkpoint, newest: int | None) -> None:
    """Make a folder what it was when a run had saved the cycle from which it goes on.

    Damaged checkpoints are set aside: those after that cycle, which will be saved anew,
    and older ones whose notes cannot be read. What was being written or deleted when a
    run was killed is deleted.

    Args:
        checkpoint: The user's options.
        newest: The newest intact checkpoint; None if there is no checkpoint.
    """
    folder = CheckpointFolder(checkpoint.path)
    folder.remove_unfinished()
    if newest is not None:
        for cycle in folder.cycles:
            if cycle > newest:
                folder.quarantine(cycle)

        def tell(message: str) -> None:
            warnings.warn(f"{message} It is set aside.", stacklevel=3)

        for cycle in set(folder.cycles) - set(folder.read_all_notes(tell)):
            folder.quarantine(cycle)
        prune(checkpoint)
    folder.warn_of_others()
