"""What a run saves, and how it goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mlox._checkpoint.arrays import filled, flattened, owned
from mlox._checkpoint.options import Checkpoint
from mlox._checkpoint.restore import Archive, Snapshot
from mlox._checkpoint.save import Store, tidy
from mlox._run.early_stopping import Best
from mlox._run.run_state import Point, State, Trail
from mlox._sharding.multihost import on_primary

Positions = Mapping[str, Any]
Records = list[dict[str, np.ndarray]]


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
    store: Store,
    trail: Trail,
    point: Point,
    safe: State,
    positions: Positions,
    scalars: Mapping[str, float],
) -> None:
    """Save a point of a run, with all that the rest of the run depends on.

    Args:
        store: Where to.
        trail: Its history and its early stopping.
        point: The state and the sums of metrics.
        safe: The state to which faults go back, or None.
        positions: Where the data were once the batches of this point were taken.
        scalars: What was measured at this point.
    """
    arrays = {
        "state": point.state,
        "totals": point.totals,
        "records": _columns(trail.records),
        "validations": _columns(trail.validations),
    }
    if trail.restored is not None and trail.restored is not point.state:
        arrays["best"] = trail.restored
    if safe is not None and safe is not point.state:
        arrays["safe"] = safe
    notes = {
        "since": point.since,
        "best": [trail.best.cycle, repr(float(trail.best.value)), trail.best.waited],
        "restores": trail.restored is not None,
        "positions": dict(positions),
        "records": list(arrays["records"]),
        "validations": list(arrays["validations"]),
    }
    score = store.checkpoint.score(scalars)
    store.save(Snapshot(point.cycle, arrays, notes), score)


def begin(
    checkpoint: Checkpoint,
    about: Mapping[str, Any],
    trail: Trail,
    resume: bool,
    spans: bool,
) -> Found | None:
    """Read the newest checkpoint, tidy up behind it, and lay the trail as it was.

    Args:
        checkpoint: Where the checkpoints are.
        about: The description of the engine.
        trail: The trail of a run that has not begun; its `safe` point has a state like
            the one that was saved.
        resume: Whether to go on from what is there, if there is anything.
        spans: Whether there are several processes, of which one tidies up.

    Returns:
        Where to go on, or None for the start.

    Raises:
        FileExistsError: If something is there, and the run should not go on from it.
        ValueError: If it is of another engine, or no checkpoint is whole.
    """
    archive = Archive(checkpoint.path)
    if not resume:
        if archive.cycles:
            raise FileExistsError(
                f"`checkpoint`: {str(checkpoint.path)!r} holds a run that has "
                f"reached cycle {archive.cycles[-1]}. Go on from there with "
                "`resume=True`, or choose another directory."
            )
        return None
    state = trail.safe.state
    read = archive.newest({"state": state}, about)
    if read is None:
        return None
    on_primary(spans, lambda: tidy(checkpoint, read.cycle))
    notes, arrays = read.notes, read.arrays
    state = filled("state", state, arrays)
    trail.safe = Point(read.cycle, state, None, notes["since"])
    trail.records.extend(_rows("records", notes, arrays))
    trail.validations.extend(_rows("validations", notes, arrays))
    cycle, value, waited = notes["best"]
    trail.best = Best(cycle, float(value), waited)
    if notes["restores"]:
        trail.restored = _best(state, arrays)
    first = {
        k: owned(x) for k, x in arrays.items() if k.startswith(("totals|", "safe|"))
    }
    return Found(read.cycle, first, notes["positions"])


def totals(found: Found, zeros: Any) -> Any:
    """Return the sums of metrics that were saved, placed like those to start from."""
    saved = {path for path in found.arrays if path.startswith("totals|")}
    here = set(flattened({"totals": zeros}))
    if saved != here:
        differ = ", ".join(sorted(p.split("'")[1] for p in saved ^ here))
        raise ValueError(
            f"the run that is resumed recorded other metrics: {differ} on one side "
            "only. Pass the losses and the `on_nonfinite` with which it began."
        )
    return filled("totals", zeros, found.arrays)


def safe(found: Found, safe: State) -> State:
    """Return the state to which faults go back, like the one that was passed."""
    if any(path.startswith("safe|") for path in found.arrays):
        return filled("safe", safe, found.arrays)
    return safe


def _best(state: State, arrays: Mapping[str, Any]) -> State:
    """Return the state of the best point, which may be the state itself."""
    if any(path.startswith("best|") for path in arrays):
        return filled("best", state, arrays)
    return state


def _columns(records: Records) -> dict[str, np.ndarray]:
    names = records[0] if records else ()
    return {name: np.stack([record[name] for record in records]) for name in names}


def _rows(kind: str, notes: Mapping[str, Any], arrays: Mapping[str, Any]) -> Records:
    columns = [np.asarray(arrays[f"{kind}|[{name!r}]"]) for name in notes[kind]]
    rows = zip(*columns, strict=True)
    return [dict(zip(notes[kind], map(np.array, row), strict=True)) for row in rows]
