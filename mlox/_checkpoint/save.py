"""A folder of checkpoints as it is written: by Orbax, beside, and moved when whole."""

from __future__ import annotations

import functools
import itertools
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlox._checkpoint.arrays import NOTES, flattened, packed
from mlox._checkpoint.options import Checkpoint
from mlox._checkpoint.restore import (
    FORMAT,
    Archive,
    BrokenError,
    Snapshot,
    best_of,
    sealed,
)


@dataclass(frozen=True, eq=False)
class Store:
    """A folder of checkpoints, open for writing.

    Attributes:
        checkpoint: What the user asked for.
        manager: Orbax's manager of the folder.
        about: The description of the engine.
    """

    checkpoint: Checkpoint
    manager: Any
    about: Mapping[str, Any]

    def save(self, snapshot: Snapshot, score: float | None) -> None:
        """Begin to save; the arrays may be donated once this has returned.

        Args:
            snapshot: What to save.
            score: The least of all is the best; None is none.
        """
        from mlox._checkpoint import orbax as _orbax

        pack = packed(flattened(snapshot.arrays))
        notes = {
            "format": FORMAT,
            "cycle": snapshot.cycle,
            "score": score,
            "about": dict(self.about),
            "leaves": pack.leaves,
            "notes": dict(snapshot.notes),
        }
        self.manager.save(
            snapshot.cycle,
            args=_orbax.saved(sealed(notes), pack.data, pack.sharded),
            metrics={"score": score},  # for `Preservation`; Orbax writes them nowhere
            force=True,
        )

    def close(self) -> None:
        """Wait until everything is written."""
        try:
            self.manager.wait_until_finished()
        finally:
            self.manager.close()


def opened(checkpoint: Checkpoint, about: Mapping[str, Any]) -> Store:
    """Open a folder for a run; what another one was writing when it died is deleted."""
    from mlox._checkpoint import orbax as _orbax

    policy = _orbax.Preservation(
        functools.partial(kept, checkpoint), Archive(checkpoint.path).score
    )
    manager = _orbax.manager(checkpoint.path, policy, checkpoint.async_)
    return Store(checkpoint, manager, about)


def kept(checkpoint: Checkpoint, scores: Mapping[int, float | None]) -> frozenset[int]:
    """Choose the checkpoints that stay: the newest, and the best if it is asked for.

    Args:
        checkpoint: What the user asked for.
        scores: Of all that there are.

    Returns:
        Their cycles.

    Example:
        >>> two = Checkpoint("runs", keep=2, best="validation/error")
        >>> sorted(kept(two, {10: 0.5, 20: 0.25, 30: None, 40: 0.75}))
        [20, 30, 40]
    """
    newest = sorted(scores)[-checkpoint.keep :]
    best = None if checkpoint.best is None else best_of(scores)
    return frozenset(newest if best is None else [*newest, best])


def tidy(checkpoint: Checkpoint, cycle: int) -> None:
    """Make a folder what it was when a run had saved a cycle, from which it goes on.

    What is newer was found to be broken, and will be saved anew; older ones may have
    been damaged, too. These are set aside. Others were about to be deleted when the run
    was killed.

    Args:
        checkpoint: What the user asked for.
        cycle: The newest checkpoint that is whole.
    """
    archive = Archive(checkpoint.path)
    for other in archive.cycles:
        if other > cycle:
            _set_aside(archive, other)
        elif other < cycle and (archive.folder(other) / "notes" / NOTES).exists():
            try:
                archive.notes(other)
            except BrokenError as error:
                warnings.warn(f"{error} It is set aside.", stacklevel=2)
                _set_aside(archive, other)
    scores = {other: archive.score(other) for other in archive.cycles}
    for other in set(scores) - kept(checkpoint, scores):
        shutil.rmtree(archive.folder(other))


def _set_aside(archive: Archive, cycle: int) -> None:
    """Give a broken checkpoint a name under which nobody looks for one."""
    names = (f"broken-{cycle}-{i}" for i in itertools.count())
    free = next(path for n in names if not (path := archive.path / n).exists())
    archive.folder(cycle).rename(free)
