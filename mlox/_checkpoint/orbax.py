"""What Orbax needs to know of our checkpoints: how bytes are written, which ones stay.

Imported only where a checkpoint is written: Orbax takes longer to import than all else
that `import mlox` adds to JAX.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals, Future

from mlox._checkpoint.arrays import BYTES, NOTES

Scores = Mapping[int, float | None]


class BytesHandler(ocp.AsyncCheckpointHandler):
    """Writes one buffer as one file.

    Orbax's own arrays go through TensorStore, which keeps some 2 KB of memory for every
    array that it has ever written, and takes longer for small ones.
    """

    async def async_save(self, directory: Any, args: Bytes) -> list[Future] | None:
        """Write in the background, once Orbax has made the folder."""
        work = _written(pathlib.Path(directory, args.file), args.data)
        return [CommitFutureAwaitingContractedSignals(work, name="bytes")]

    def save(self, directory: Any, args: Bytes) -> None:
        """Write at once."""
        _write(pathlib.Path(directory, args.file), args.data)

    def restore(self, directory: Any, args: Bytes | None = None) -> np.ndarray:
        """Read it, as people may who open a checkpoint with Orbax alone."""
        file = BYTES if args is None else args.file
        return np.fromfile(pathlib.Path(directory, file), np.uint8)


@ocp.args.register_with_handler(BytesHandler, for_save=True, for_restore=True)
@dataclass  # not frozen, as its base is not
class Bytes(ocp.args.CheckpointArgs):
    """A buffer, which must not change any more, and its file; empty for reading."""

    data: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    file: str = BYTES


@dataclass(frozen=True)
class Preservation:
    """Orbax's question of which checkpoints stay, answered by their scores.

    Attributes:
        chosen: Selects among all scores.
        read: Reads a score that this process has not written.
    """

    chosen: Callable[[Scores], frozenset[int]]
    read: Callable[[int], float | None]

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> Sequence[bool]:
        """Say of each checkpoint whether it stays."""
        del context
        scores = {
            info.step: info.metrics["score"] if info.metrics else self.read(info.step)
            for info in checkpoints
        }
        kept = self.chosen(scores)
        return [cycle in kept for cycle in scores]


def manager(folder: pathlib.Path, policy: Preservation, async_: bool) -> Any:
    """Open a folder for writing; it must be closed."""
    # Orbax gets no `best_fn`: it would read the scores of all checkpoints with every
    # opening, and one damaged file would stop them all.
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        enable_async_checkpointing=async_,
        cleanup_tmp_directories=True,
        lightweight_initialize=True,
    )
    return ocp.CheckpointManager(folder, options=options)


def saved(
    notes: bytes, data: np.ndarray, sharded: Mapping[str, Any]
) -> ocp.args.Composite:
    """Say what to write: notes, bytes, and arrays that no process has whole, if any."""
    # Orbax takes names from the paths, in which some signs have a meaning.
    numbered = {str(i): array for i, array in enumerate(sharded.values())}
    apart = {"sharded": ocp.args.StandardSave(numbered)} if sharded else {}
    # Not as JSON of Orbax: made in its threads, it lets their heaps grow.
    text = Bytes(np.frombuffer(notes, np.uint8), NOTES)
    return ocp.args.Composite(notes=text, arrays=Bytes(data), **apart)


def restored(folder: pathlib.Path, targets: Mapping[str, Any]) -> dict[str, Any]:
    """Read the shards of this process of arrays that no process has whole."""
    numbered = {str(i): target for i, target in enumerate(targets.values())}
    with ocp.StandardCheckpointer() as checkpointer:
        read = checkpointer.restore(folder / "sharded", numbered)
    return {path: read[str(i)] for i, path in enumerate(targets)}


async def _written(file: pathlib.Path, data: np.ndarray) -> None:
    _write(file, data)


def _write(file: pathlib.Path, data: np.ndarray) -> None:
    """Write a buffer, and wait until it is on the disk; only one process does."""
    if jax.process_index():
        return
    with file.open("wb") as stream:
        stream.write(data.data)
        stream.flush()
        os.fsync(stream.fileno())
