"""Measurements at a point of a run: mean metrics and validation scores."""

from __future__ import annotations

import time
from collections.abc import Mapping

import jax
import numpy as np

from mlox._data import stacking as _data
from mlox._run.dispatch import Totals, copy_state, scalar_names
from mlox._run.early_stopping import EarlyStopping, check_recorded, update
from mlox._run.health import observe
from mlox._run.nonfinite import CYCLES
from mlox._run.run_state import Point, Rows, RunState, list_rows
from mlox._sharding.multihost import mean_over_processes
from mlox._utils.describe import summarize
from mlox._utils.fields import Kind, check, instance_of
from mlox._utils.types import Columns, Scalars, Validation


def mean_metrics(point: Point) -> Columns:
    """Fetch the means over the cycles from `since` to `cycle`, in one transfer.

    The means leave out non-finite cycles, which are counted.
    """
    sums, counts, _ = jax.device_get(point.totals)
    cycles = count_cycles(point)
    means = {
        name: np.asarray(total / cycles if cycles else np.full_like(total, np.nan))
        for name, total in sums.items()
    }
    return {**means, **{name: np.array(count) for name, count in counts.items()}}


def count_cycles(point: Point) -> int:
    """Return the cycles that the means of a point are over."""
    unused = int(jax.device_get(point.totals.counts.get(CYCLES, 0)))
    return point.cycle - point.since - unused


def record_means(reached: RunState, zeros: Totals) -> tuple[RunState, dict[str, float]]:
    """Record the means since the last log point, and return the scalars, too.

    The totals of the newest point begin anew with `zeros`.
    """
    point = reached.point
    # This waits for the device, so it is part of the time.
    point = point._replace(totals=jax.device_get(point.totals))
    means = mean_metrics(point)
    watches = tuple(
        observe(watch, count_cycles(point), means, point.totals.squares)
        for watch in reached.watches
    )
    cycle, began = reached.clock
    speed = (point.cycle - cycle) / max(time.perf_counter() - began, 1e-9)
    record = {"cycle": np.asarray(point.cycle), **means}
    point = point._replace(totals=zeros, since=point.cycle)
    reached = reached._replace(
        points=(*reached.points[:-1], point),
        records=Rows(record, reached.records),
        watches=watches,
    )
    scalars = {name: float(means[name]) for name in scalar_names(means)}
    return reached, {"cycles_per_second": speed, **scalars}


def copy_fallback(reached: RunState) -> RunState:
    """Make a copy of the newest point the fallback, as its state will be donated."""
    point = reached.point
    return reached._replace(fallback=point._replace(state=copy_state(point.state)))


def update_early_stopping(
    rule: EarlyStopping, reached: RunState, scalars: Scalars, donate: bool
) -> RunState:
    """Return the run's state after its rule has compared the newest point."""
    check_recorded(rule, scalars)
    cycle = reached.point.cycle
    best = update(rule, reached.best, cycle, scalars[rule.metric])
    if best.cycle == cycle and rule.restore_best:
        if donate and reached.fallback.cycle < cycle:
            reached = copy_fallback(reached)
        kept = reached.fallback if donate else reached.point
        reached = reached._replace(best_state=kept.state)
    return reached._replace(best=best)


def newly_nonfinite(records: Rows) -> tuple[list[str], bool]:
    """Return the losses that became non-finite in the last record.

    The second value is whether no loss was non-finite before.
    """
    before = records.before
    lost = _nonfinite_losses(records.last)
    lost_before = set() if before is None else _nonfinite_losses(before.last)
    new = [name for name in records.last if name in lost - lost_before]
    first = bool(new) and not any(_nonfinite_losses(x) for x in list_rows(before))
    return new, first


def _nonfinite_losses(record: Columns) -> set[str]:
    return {
        name
        for name, value in record.items()
        if name.endswith("/loss") and not np.isfinite(value).all()
    }


RESULT = instance_of(Mapping, "a dict of scalars")
SCORE_NAME = Kind(
    "a string other than 'cycle', under which the history holds the cycles",
    lambda x: isinstance(x, str) and x != "cycle",
)
SCORE = Kind(
    "a real scalar",
    lambda x: not x.ndim and _data.is_numeric(x) and not np.iscomplexobj(x),
)


def validate(
    validation: Validation, point: Point, before: Rows | None, multi_process: bool
) -> Columns:
    """Return the scores of a point, or their means over several processes.

    Raises:
        TypeError: If the validation does not return a dict.
        ValueError: If the values are not scalars, or the names differ from `before`.
    """
    jax.block_until_ready(point.totals)

    def measure() -> Columns:
        returned = validation(point.state)
        hint = 'Return e.g. {"accuracy": accuracy}.'
        check("`validation`: result", returned, RESULT, hint)
        for name in returned:
            check("`validation`: name of a score", name, SCORE_NAME)
        # Copied, since a view in a record would keep a buffer of the device alive.
        scores = {n: np.array(x) for n, x in jax.device_get(dict(returned)).items()}
        hint = "Reduce it, e.g. by its mean."
        for name, score in scores.items():
            check(f"`validation`: score {name!r}", score, SCORE, hint)
        return {f"validation/{name}": score for name, score in scores.items()}

    scores = mean_over_processes(measure) if multi_process else measure()
    record = {"validation/cycle": np.asarray(point.cycle), **scores}
    if before and set(record) != set(before.last):
        raise ValueError(
            f"`validation` returned {summarize(sorted(record))}, but at first "
            f"{summarize(sorted(before.last))}. Return the same names every time."
        )
    return record
