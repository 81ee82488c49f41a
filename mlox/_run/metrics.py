"""What is due at a point of a run: means, validations, and a judgement of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mlox._data import stacking as _data
from mlox._run.dispatch import Totals, copied, shown
from mlox._run.early_stopping import EarlyStopping, update, value_of
from mlox._run.nonfinite import CYCLES, cause
from mlox._run.run_state import Point, State, Trail, mean_metrics
from mlox._sharding.multihost import mean_over_processes

Validation = Callable[[State], Mapping[str, Any]]


class Clock(NamedTuple):
    """When a cycle began, in seconds."""

    cycle: int
    seconds: float


def measure(trail: Trail, point: Point, clock: Clock, donate: bool) -> dict[str, float]:
    """Record the means since the last log point, and return the scalars."""
    means = mean_metrics(point)
    seconds = max(time.perf_counter() - clock.seconds, 1e-9)
    speed = (point.cycle - clock.cycle) / seconds
    if donate:
        trail.safe = point._replace(state=copied(point.state))
    trail.records.append({"cycle": np.asarray(point.cycle), **means})
    return {"cycles_per_second": speed, **{n: float(means[n]) for n in shown(means)}}


def check_faults(trail: Trail, point: Point) -> None:
    """Stop at a state that was kept since its next cycle was not finite.

    Raises:
        FloatingPointError: If there was such a cycle; the trail is as before it.
    """
    counts = jax.device_get(point.totals.counts)
    kept = int(counts[CYCLES])
    if kept:
        good = point.cycle - kept
        none = {name: np.zeros_like(count) for name, count in counts.items()}
        totals = Totals(point.totals.sums, none)
        trail.points.clear()
        trail.safe = Point(good, point.state, totals, point.since)
        trail.stage = "the step of"
        raise FloatingPointError(cause(counts, good + 1))


def turned(records: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
    """List the losses that were finite until the last record, and are not there."""

    def finite(record: Mapping[str, np.ndarray], name: str) -> bool:
        return bool(np.isfinite(record[name]).all())

    losses = [name for name in records[-1] if name.endswith("/loss")]
    return [
        name
        for name in losses
        if not finite(records[-1], name)
        and all(finite(record, name) for record in records[-2:-1])
    ]


def validate(
    validation: Validation, trail: Trail, point: Point, spans: bool
) -> dict[str, float]:
    """Call the validation on a state that is computed, and record its scalars."""
    jax.block_until_ready(point.totals)
    trail.stage = "the validation after"

    def measured() -> dict[str, np.ndarray]:
        return _scores(validation(point.state))

    scores = mean_over_processes(measured) if spans else measured()
    record = {"validation/cycle": np.asarray(point.cycle), **scores}
    if trail.validations and set(record) != set(trail.validations[0]):
        raise ValueError(
            f"`validation` returned {sorted(record)}, but at first "
            f"{sorted(trail.validations[0])}. Return the same names every time."
        )
    trail.validations.append(record)
    return {name: float(score) for name, score in scores.items()}


def _scores(found: Any) -> dict[str, np.ndarray]:
    """Check what a validation returned, and fetch it."""
    if not isinstance(found, Mapping):
        raise TypeError(
            f"`validation` must return a dict of scalars, got {type(found).__name__}. "
            f'Return e.g. {{"accuracy": accuracy}}.'
        )
    for name in found:
        if not isinstance(name, str) or name == "cycle":
            raise ValueError(
                f"`validation` returned a score called {name!r}; expected a string "
                "other than 'cycle', under which the history holds the cycles."
            )
    scores = {}
    for name, value in jax.device_get(dict(found)).items():
        score = np.array(value)  # a copy: else the record holds a buffer of the device
        if score.ndim or not _data.is_numeric(score) or np.iscomplexobj(score):
            raise ValueError(
                f"`validation` must return real scalars, but {name!r} is "
                f"{score.dtype}{list(score.shape)}. Reduce it, e.g. by its mean."
            )
        scores[f"validation/{name}"] = score
    return scores


def judge(
    rule: EarlyStopping,
    trail: Trail,
    point: Point,
    scalars: Mapping[str, float],
    donate: bool,
) -> bool:
    """Judge a point, keep its state if it is the best, and say whether to stop."""
    best = update(rule, trail.best, point.cycle, value_of(rule, scalars))
    if best.cycle == point.cycle and rule.restore_best:
        if donate and trail.safe.cycle < point.cycle:
            trail.safe = point._replace(state=copied(point.state))
        trail.restored = (trail.safe if donate else point).state
    trail.best = best
    return best.waited >= rule.patience
