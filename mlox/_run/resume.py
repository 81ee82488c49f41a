"""Save a run, and resume it from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlox._checkpoint.folder import CheckpointFolder
from mlox._checkpoint.leaves import join_path, name_leaves, restore_into
from mlox._checkpoint.read import read_newest
from mlox._checkpoint.restore import match_run
from mlox._checkpoint.save import CheckpointWriter, clean
from mlox._run.arguments import RunConfig
from mlox._run.dispatch import Totals
from mlox._run.early_stopping import Best, EarlyStopping
from mlox._run.health import Watch
from mlox._run.nonfinite import CYCLES, Policy
from mlox._run.run_state import Point, Rows, RunState, stack_columns, start_at
from mlox._sharding.multihost import on_primary, select_positions
from mlox._utils.describe import summarize
from mlox._utils.types import Columns, PyTree, Scalars


def save(
    writer: CheckpointWriter,
    reached: RunState,
    rule: EarlyStopping | None,
    positions: Mapping[str, Any],
    scalars: Scalars,
) -> None:
    """Save the newest point of a run, with all that the rest of the run depends on.

    Args:
        writer: Where to.
        reached: What the run has reached.
        rule: Its early stopping.
        positions: Where the data of all processes are.
        scalars: What was measured at this point.
    """
    point, best = reached.point, reached.best
    trees: dict[str, PyTree] = {
        "state": point.state,
        "totals": point.totals,
        "records": stack_columns(reached.records),
        "validations": stack_columns(reached.validations),
    }
    others = {"best": reached.best_state, "rewind_to": reached.rewind_to}
    trees |= {
        name: state
        for name, state in others.items()
        if state is not None and state is not point.state
    }
    notes = {
        "since": point.since,
        "best": list(best),
        "rule": _describe_rule(rule),
        "watches": [list(watch) for watch in reached.watches],
        "has_best": reached.best_state is not None,
        "positions": dict(positions),
        **{name: list(trees[name]) for name in ("records", "validations")},
        **{name: list(metrics) for name, metrics in point.totals._asdict().items()},
    }
    writer.save(point.cycle, trees, notes, scalars)


def resume(
    config: RunConfig, metadata: Mapping[str, Any], state: PyTree, multi_process: bool
) -> RunState:
    """Restore the latest intact checkpoint, and rebuild the state of the run.

    Args:
        config: The arguments of the run. Its early stopping continues from the saved
            one if it is equal except for `patience`.
        metadata: The description of the engine.
        state: A state like the saved one, from which a new run begins.
        multi_process: Whether there are several processes, of which one cleans up.

    Raises:
        FileExistsError: If there is a checkpoint, and the run is not to be resumed.
        ValueError: If it is that of another engine, or no checkpoint is intact.
    """
    checkpoint = config.checkpoint
    if checkpoint is None:
        return start_at(0, state)
    folder = CheckpointFolder(checkpoint.path)
    folder.check_format()
    if folder.cycles and not config.resume:
        raise FileExistsError(
            f"`checkpoint`: {str(checkpoint.path)!r} holds checkpoints up "
            f"to cycle {folder.cycles[-1]}. Continue a run with "
            "`resume=True`, or choose another directory."
        )
    read = read_newest(folder, match_run(state, metadata))
    newest = None if read is None else read.cycle
    on_primary(multi_process, lambda: clean(checkpoint, newest))
    if read is None:
        return start_at(0, state)
    notes, arrays = read.notes, read.arrays

    def columns(names: list[str], *path: str) -> Columns:
        return {n: np.array(arrays[join_path(*path, n)]) for n in names}

    def restore_state(name: str, like: PyTree) -> PyTree:
        """Return a state that was saved under a name, or the one it is equal to."""
        return restore_into({name: like}, arrays)[name]

    state = restore_state("state", state)
    # Older checkpoints have no squares, and no watches.
    totals = Totals(*(columns(notes.get(n, []), "totals", n) for n in Totals._fields))
    reached = start_at(read.cycle, state, notes["since"], totals)._replace(
        records=_rows(columns(notes["records"], "records")),
        validations=_rows(columns(notes["validations"], "validations")),
        positions=select_positions(notes["positions"]),
        watches=tuple(Watch(*row) for row in notes.get("watches", [])),
    )
    if config.policy is Policy.RESTORE:
        reached = reached._replace(rewind_to=restore_state("rewind_to", state))
    rule = config.early_stopping
    if rule is not None and notes["rule"] == _describe_rule(rule):
        best_state = restore_state("best", state) if notes["has_best"] else None
        reached = reached._replace(best=Best(*notes["best"]), best_state=best_state)
    return reached


def restore_totals(point: Point, zeros: Totals, policy: Policy | None) -> Point:
    """Return a point with the totals of its checkpoint, placed like those of a new run.

    They begin anew if a metric has another shape, because the batches have, if the
    checkpoint is older than the gap, or if they leave out cycles that the policy of
    this run would not: a mean is over equal cycles.

    Raises:
        ValueError: If the losses recorded other metrics.
    """
    saved = point.totals
    if not saved.sums:
        return point._replace(totals=zeros)
    # Older checkpoints have no gaps, which are the metrics with squares.
    gaps = zeros.squares.keys() - saved.sums.keys()
    if names := sorted((saved.sums.keys() ^ zeros.sums.keys()) - gaps):
        raise ValueError(
            f"the run that is resumed recorded other metrics: {summarize(names)} "
            "on one side only. Pass the losses with which it began, and an engine with "
            "the same telemetry and metrics."
        )
    same = zeros.sums.keys() - gaps
    reshaped = any(saved.sums[n].shape != zeros.sums[n].shape for n in same)
    skipped = int(saved.counts.get(CYCLES, 0)) > 0
    restarts = skipped and policy not in (Policy.SKIP, Policy.RESTORE)
    if gaps or reshaped or restarts:
        return point._replace(totals=zeros, since=point.cycle)
    # Squares that are missing count as infinite: that interval is not judged.
    missing = {n: np.full_like(x, np.inf) for n, x in zeros.squares.items()}
    saved = saved._replace(squares={**missing, **saved.squares})
    return point._replace(totals=restore_into(zeros, name_leaves(saved)))


def _describe_rule(rule: EarlyStopping | None) -> list[Any] | None:
    """Return the part of a rule that must be equal to continue from its state."""
    if rule is None:
        return None
    return [rule.metric, rule.mode, float(rule.min_delta), rule.restore_best]


def _rows(columns: Columns) -> Rows | None:
    table = None
    for row in zip(*columns.values(), strict=True):
        table = Rows(dict(zip(columns, map(np.array, row), strict=True)), table)
    return table
