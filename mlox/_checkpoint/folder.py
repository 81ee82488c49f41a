"""A folder of checkpoints: their names, their notes, deletion and quarantine.

Entries without the notes of a run of mlox are never changed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
import re
import shutil
import zlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from mlox._utils.warn import warn

FORMAT = 3
STATE, RUN, NOTES = "state", "run", "mlox"
"""The folders of a checkpoint: the state, other arrays of the run, the notes."""

_CYCLE = re.compile(r"cycle_(0|[1-9][0-9]*)")
_UNFINISHED = re.compile(_CYCLE.pattern + r"\.orbax-checkpoint-tmp(-\d+)?")
# The paths in a checkpoint, also while Orbax and TensorStore write them.
_CONTENT = re.compile(
    rf"_CHECKPOINT_METADATA|commit_success\.txt"
    rf"|({STATE}|{RUN}|{NOTES})(\.orbax-checkpoint-tmp)?"
    r"(/(_METADATA|_sharding|array_metadatas|commit_success\.txt|d|[0-9a-f]{32}"
    r"|manifest\.ocdbt|metadata|(ocdbt\.)?process_\d+)(\.__lock)?)*"
)
_QUARANTINED = re.compile(r"broken-\d+-\d+")


class DamagedError(ValueError):
    """A checkpoint differs from what was saved."""


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Generator[None]:
    """Convert errors of reading a checkpoint to a `DamagedError` that names it.

    If it no longer exists, as a run has deleted it, raise FileNotFoundError instead.
    """
    try:
        yield
    except Exception as error:
        if not path.exists():
            raise FileNotFoundError(f"Checkpoint {str(path)!r} is gone.") from error
        first = (str(error).splitlines() or [""])[0][:200]
        raise DamagedError(
            f"Checkpoint {str(path)!r} is broken ({type(error).__name__}: {first})."
        ) from error


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints in a folder of the user.

    Attributes:
        parent: The folder of the user.
    """

    parent: pathlib.Path

    @property
    def path(self) -> pathlib.Path:
        """The folder of the checkpoints alone."""
        return self.parent / "checkpoints"

    @property
    def cycles(self) -> list[int]:
        """The cycles of the checkpoints of runs of mlox, the oldest first."""
        found = [(_CYCLE.fullmatch(path.name), path) for path in self._entries()]
        return sorted(int(m[1]) for m, path in found if m and (path / NOTES).is_dir())

    def locate(self, cycle: int) -> pathlib.Path:
        """Return the folder of a checkpoint."""
        return self.path / f"cycle_{cycle}"

    def read_notes(self, cycle: int) -> dict[str, Any]:
        """Read the notes of a checkpoint, or raise an error as in `reading`."""
        with reading(self.locate(cycle)):
            read = json.loads((self.locate(cycle) / NOTES / "metadata").read_bytes())
            if read["checksum"] != with_checksum(read["notes"])["checksum"]:
                raise ValueError("its notes are not those saved")
            if read["notes"]["format"] != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            return read["notes"]

    def read_all_notes(self, tell: Callable[[str], Any]) -> dict[int, dict[str, Any]]:
        """Read the notes of all checkpoints, and report damaged ones to `tell`."""
        notes = {}
        for cycle in self.cycles:
            try:
                notes[cycle] = self.read_notes(cycle)
            except FileNotFoundError:  # deleted in the meantime
                return self.read_all_notes(tell)
            except DamagedError as error:
                tell(str(error))
        return notes

    def is_taken(self, cycle: int) -> bool:
        """Return whether the place of a checkpoint is taken by something else."""
        path = self.locate(cycle)
        return (
            path.exists()
            or path.with_name(f"{path.name}.orbax-checkpoint-tmp").exists()
        )

    def quarantine(self, cycle: int) -> None:
        """Rename a damaged checkpoint, so that it is no longer read."""
        self.locate(cycle).rename(self._unused(f"broken-{cycle}"))

    def remove(self, cycle: int) -> None:
        """Delete a checkpoint; if this is interrupted, it counts as unfinished."""
        unfinished = self._unused(f"cycle_{cycle}.orbax-checkpoint-tmp")
        self.locate(cycle).rename(unfinished)
        shutil.rmtree(unfinished)

    def remove_unfinished(self, cycle: int | None = None) -> None:
        """Delete what a killed run was writing or deleting, of all cycles or of one."""
        for path in self._entries():
            theirs = cycle is None or path.name.startswith(f"cycle_{cycle}.")
            if theirs and _is_unfinished(path):
                shutil.rmtree(path)

    def warn_of_others(self) -> None:
        """Warn of entries that no run of mlox has saved."""
        ours = {self.locate(cycle) for cycle in self.cycles}
        others = sorted(
            path.name
            for path in self._entries()
            if path not in ours and not _QUARANTINED.fullmatch(path.name)
        )
        if others:
            warn(
                f"{str(self.path)!r} holds {', '.join(map(repr, others[:10]))}"
                f"{', ...' if others[10:] else ''}, which no run of mlox has saved: "
                "left alone."
            )

    def check_format(self) -> None:
        """Raise ValueError if the folder holds checkpoints of an older format."""
        paths = list(self.parent.iterdir()) if self.parent.is_dir() else []
        numbered = [path for path in paths if path.name.isdecimal()]
        old = [path for path in numbered if (path / "arrays" / "bytes").is_file()]
        if old:
            raise ValueError(
                f"{str(old[0])!r} is a checkpoint in a format that this version of "
                "mlox does not read. It is left as it is: choose another directory."
            )

    def _entries(self) -> list[pathlib.Path]:
        return list(self.path.iterdir()) if self.path.is_dir() else []

    def _unused(self, stem: str) -> pathlib.Path:
        paths = (self.path / f"{stem}-{i}" for i in itertools.count())
        return next(path for path in paths if not path.exists())


def with_checksum(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return notes as they are after a round trip through JSON, with a checksum."""
    text = json.dumps(notes)
    return {"checksum": zlib.crc32(text.encode()), "notes": json.loads(text)}


def _is_unfinished(path: pathlib.Path) -> bool:
    """Return whether a run of mlox was writing or deleting a checkpoint here."""
    if not _UNFINISHED.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
        return False
    content = (p.relative_to(path).as_posix() for p in path.rglob("*"))
    return all(map(_CONTENT.fullmatch, content))
