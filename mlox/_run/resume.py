"""What a run saves, and how it goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np

from mlox._checkpoint.folder import CheckpointFolder
from mlox._checkpoint.leaves import join_path, name_leaves, restore_into
from mlox._checkpoint.options import Checkpoint
from mlox._checkpoint.read import read_newest
from mlox._checkpoint.restore import match_run
from mlox._checkpoint.save import CheckpointWriter, clean
from mlox._run.early_stopping import Best, EarlyStopping
from mlox._run.run_state import RunState, stack_columns, start_at
from mlox._sharding.multihost import on_primary
from mlox._utils.types import Columns, PyTree, State

Positions = Mapping[str, Any]


class Found(NamedTuple):
    """Where a run goes on.

    Attributes:
        cycle: The cycles behind.
        arrays: What the first dispatch takes besides the state, by name and path.
        positions: Where the data go on.
    """

    cycle: int
    arrays: Mapping[str, Any]
    positions: Positions


def save(
    store: CheckpointWriter,
    reached: RunState,
    rule: EarlyStopping | None,
    safe: PyTree,
    positions: Positions,
    scalars: Mapping[str, float],
) -> None:
    """Save a point of a run, with all that the rest of the run depends on.

    Args:
        store: Where to.
        reached: What the run has reached.
        rule: Its early stopping.
        safe: The state to which faults go back, or None.
        positions: Where the data were once the batches of this point were taken.
        scalars: What was measured at this point.
    """
    point, best = reached.point, reached.best
    arrays = {
        "state": point.state,
        "totals": point.totals,
        "records": stack_columns(reached.records),
        "validations": stack_columns(reached.validations),
    }
    if reached.best_state is not None and reached.best_state is not point.state:
        arrays["best"] = reached.best_state
    if safe is not None and safe is not point.state:
        arrays["safe"] = safe
    notes = {
        "since": point.since,
        "best": [best.cycle, repr(float(best.value)), best.waited],
        "rule": _describe_rule(rule),
        "restores": reached.best_state is not None,
        "positions": dict(positions),
        "records": list(arrays["records"]),
        "validations": list(arrays["validations"]),
    }
    store.save(point.cycle, arrays, notes, scalars)


def begin(
    checkpoint: Checkpoint,
    about: Mapping[str, Any],
    state: State,
    rule: EarlyStopping | None,
    resume: bool,
    spans: bool,
) -> tuple[RunState, Found | None]:
    """Restore the latest intact checkpoint, and rebuild what the run had reached.

    Args:
        checkpoint: Where the checkpoints are.
        about: The description of the engine.
        state: A state like the one that was saved, from which a new run begins.
        rule: The early stopping. It goes on from what the one that was saved has seen
            if it is the same, but for its patience.
        resume: Whether to go on from what is there, if there is anything.
        spans: Whether there are several processes, of which one tidies up.

    Returns:
        What the run has reached, and what else was saved; None for a new run.

    Raises:
        FileExistsError: If something is there, and the run should not go on from it.
        ValueError: If it is of another engine, or no checkpoint is whole.
    """
    folder = CheckpointFolder(checkpoint.path)
    folder.check_format()
    if folder.cycles and not resume:
        raise FileExistsError(
            f"`checkpoint`: {str(checkpoint.path)!r} holds a run that has "
            f"reached cycle {folder.cycles[-1]}. Go on from there with "
            "`resume=True`, or choose another directory."
        )
    read = read_newest(folder, match_run(state, about))
    on_primary(spans, lambda: clean(checkpoint, None if read is None else read.cycle))
    if read is None:
        return start_at(0, state), None
    notes, arrays = read.notes, read.arrays
    state = _restore_state("state", state, arrays)
    reached = start_at(read.cycle, state, notes["since"])._replace(
        records=_rows("records", notes, arrays),
        validations=_rows("validations", notes, arrays),
    )
    if rule is not None and notes["rule"] == _describe_rule(rule):
        cycle, value, waited = notes["best"]
        reached = reached._replace(
            best=Best(cycle, float(value), waited),
            best_state=_restore_state("best", state, arrays)
            if notes["restores"]
            else None,
        )
    return reached, Found(read.cycle, arrays, notes["positions"])


def totals(found: Found, zeros: Any) -> Any:
    """Return the sums of metrics that were saved, placed like those to start from."""
    saved = {k: x.shape for k, x in found.arrays.items() if k.startswith("totals.")}
    here = {k: x.shape for k, x in name_leaves({"totals": zeros}).items()}
    if saved != here:
        differ = {k for k, _ in saved.items() ^ here.items()}
        names = ", ".join(sorted(unquote(path.rpartition(".")[2]) for path in differ))
        raise ValueError(
            f"the run that is resumed recorded other metrics: {names} on one side "
            "only, or of another shape. Pass the losses, the `on_nonfinite` and the "
            "size of batches with which it began."
        )
    return restore_into({"totals": zeros}, found.arrays)["totals"]


def safe(found: Found, safe: PyTree) -> PyTree:
    """Return the state to which faults go back, like the one that was passed."""
    return _restore_state("safe", safe, found.arrays)


def _restore_state(name: str, state: PyTree, arrays: Mapping[str, Any]) -> Any:
    """Return a state that was saved under a name; the one at hand if it was not."""
    return restore_into({name: state}, arrays)[name]


def _describe_rule(rule: EarlyStopping | None) -> list[Any] | None:
    """Return what must be equal for a rule to go on from what another has seen."""
    if rule is None:
        return None
    return [rule.metric, rule.mode, repr(float(rule.min_delta)), rule.restore_best]


def _rows(
    kind: str, notes: Mapping[str, Any], arrays: Mapping[str, Any]
) -> tuple[Columns, ...]:
    columns = [np.asarray(arrays[join_path(kind, name)]) for name in notes[kind]]
    rows = zip(*columns, strict=True)
    return tuple(
        dict(zip(notes[kind], map(np.array, row), strict=True)) for row in rows
    )
