"""The one host loop: batches in, states out, with logging, validation and saving.

The device never waits for the host between log points: a dispatch returns before it is
computed, the next batches are gathered meanwhile, and metrics stay on the device.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from mlox._checkpoint.options import Checkpoint, check_best
from mlox._checkpoint.save import Store
from mlox._data.iterators import BatchIterator
from mlox._logging import base as _log
from mlox._logging.console import format_losses
from mlox._run import early_stopping as _stopping
from mlox._run import metrics as _points
from mlox._run import nonfinite as _faults
from mlox._run import resume as _saving
from mlox._run.dispatch import Steps, compiled, copied, gather, lengths, zero_totals
from mlox._run.early_stopping import EarlyStopping, reason
from mlox._run.metrics import Clock, Validation
from mlox._run.resume import Found
from mlox._run.run_state import Point, State, Trail
from mlox._run.signals import noted
from mlox._sharding.layout import Layout
from mlox._sharding.multihost import gather_positions, poll_preemption


class Plan(NamedTuple):
    """The checked options of a run."""

    train_iters: int
    log_every: int
    valid_every: int
    cycles_per_dispatch: int
    validation: Validation | None
    stopping: EarlyStopping | None
    checkpoint: Checkpoint | None
    policy: _faults.Policy | None
    donate: bool

    @property
    def judges_scores(self) -> bool:
        """Whether the early stopping judges a score, and no mean metric."""
        rule = self.stopping
        return rule is not None and self.validation is not None and rule.is_score


class Run(NamedTuple):
    """A run with all that it has opened, and how its state is placed on a mesh."""

    engine: Steps
    plan: Plan
    trail: Trail
    sources: Mapping[str, BatchIterator]
    loggers: Sequence[_log.Logger]
    bar: tqdm
    store: Store | None
    layout: Layout | None

    @property
    def spans(self) -> bool:
        """Whether it is one of several processes."""
        return self.layout is not None and self.layout.is_multi_process


class Start(NamedTuple):
    """Where the device begins.

    Attributes:
        point: The first state, a copy if dispatches donate.
        zeros: The sums of metrics after a log point.
        safe: The state of the last checkpoint, for faults; None if it is not needed.
        batches: Those of the first dispatch.
    """

    point: Point
    zeros: Any
    safe: State
    batches: Any


class Due(NamedTuple):
    """What the schedule says of a point; everything is due at the last one."""

    logs: bool
    validates: bool
    saves: bool
    ends: bool


class Reached(NamedTuple):
    """What a dispatch has led to.

    Attributes:
        point: The state, and the sums of metrics.
        onward: The same as the next dispatch takes it: sums are zero after a log point.
        safe: As of `Start`.
        due: What is due.
        positions: Where the data are after the batches until here.
        clock: When which cycle began.
    """

    point: Point
    onward: Point
    safe: State
    due: Due
    positions: Mapping[str, Any]
    clock: Clock


def loop(run: Run, found: Found | None) -> None:
    """Make all dispatches of a run, and see to what is due after each."""
    plan, trail = run.plan, run.trail
    cycles = plan.train_iters - trail.safe.cycle
    stopped = plan.stopping is not None and trail.best.waited >= plan.stopping.patience
    if stopped or not cycles:
        trail.points.append(trail.safe)
        return
    start = _started(run, found, min(cycles, plan.cycles_per_dispatch))
    # Where there are several processes, JAX notes the signals.
    with noted(run.store is not None and not run.spans) as signals:
        for number, reached in enumerate(_dispatched(run, start, cycles)):
            asked = poll_preemption(number) if run.spans else bool(signals)
            stops = _seen_to(run, reached, asked)
            if stops:
                return
            if asked and not reached.due.ends:
                trail.stage = "a signal after"
                raise KeyboardInterrupt(_farewell(run, signals))


def _started(run: Run, found: Found | None, count: int) -> Start:
    """Check and place what the first dispatch takes."""
    plan, trail = run.plan, run.trail
    batches = gather(run.engine, run.sources, count, run.layout)
    state = copied(trail.safe.state) if plan.donate else trail.safe.state
    trail.stage = "the step of"
    zeros = zero_totals(run.engine, count, plan.policy, run.layout)(state, batches)
    if plan.stopping is not None and not plan.judges_scores:
        trail.stage = "the early stopping after"
        _stopping.check_metric(plan.stopping, zeros.shown)
    if plan.checkpoint is not None and not plan.checkpoint.of_scores:
        trail.stage = "the checkpoints after"
        check_best(plan.checkpoint, zeros.shown)
    point = Point(trail.safe.cycle, state, zeros, trail.safe.since)
    safe = trail.safe.state if plan.policy == "restore" else None
    if found is not None:
        point = point._replace(totals=_saving.totals(found, zeros))
        safe = _saving.safe(found, safe)
    return Start(point, zeros, safe, batches)


def _dispatched(run: Run, start: Start, cycles: int) -> Iterator[Reached]:
    """Dispatch, and gather the next batches meanwhile."""
    plan, trail, each = run.plan, run.trail, run.plan.cycles_per_dispatch
    make = {
        n: compiled(run.engine, n, plan.donate, plan.policy, run.layout)
        for n in {min(cycles, each), cycles % each} - {0}
    }
    point, zeros, safe, batches = start
    clock: Clock | None = None
    counts = itertools.chain(lengths(cycles, each), (0,))
    for count, following in itertools.pairwise(counts):
        trail.stage = "the step of"
        state, totals = make[count](point.state, point.totals, batches, safe)
        if clock is None:  # started here, it leaves out tracing and compiling
            clock = Clock(point.cycle, time.perf_counter())
        point = Point(point.cycle + count, state, totals, point.since)
        trail.points.append(point)
        positions = {} if run.store is None else _positions(run.sources)
        if following:
            trail.stage = "the data of"
            batches = gather(run.engine, run.sources, following, run.layout)
        trail.stage = "the step of"
        if len(trail.points) > 1:
            jax.block_until_ready(trail.points[-2].totals)
        run.bar.update(count)
        due = _due(plan, point.cycle, count, ends=following == 0)
        onward = point
        if due.logs:
            onward = point._replace(totals=zeros, since=point.cycle)
        if due.saves and plan.policy == "restore":
            safe = copied(point.state) if plan.donate else point.state
        yield Reached(point, onward, safe, due, positions, clock)
        point = onward
        if due.logs:
            clock = Clock(point.cycle, time.perf_counter())


def _due(plan: Plan, cycle: int, count: int, ends: bool) -> Due:
    def passes(every: int) -> bool:
        """Say whether one of the last `count` cycles is a multiple of `every`."""
        return cycle // every > (cycle - count) // every

    return Due(
        ends or passes(plan.log_every),
        ends or passes(plan.valid_every),
        plan.checkpoint is not None and passes(plan.checkpoint.every),
        ends,
    )


def _seen_to(run: Run, reached: Reached, asked: bool) -> bool:
    """Record, log and save what is due or asked for, and say whether the run stops."""
    plan, trail, point, due = run.plan, run.trail, reached.point, reached.due
    if plan.policy == "raise" and (any(due) or asked):
        _points.check_faults(trail, point)
    scalars = _scalars(run, reached, due.logs, due.validates)
    stops = _stops(run, reached, scalars) and not due.ends
    if stops:  # the end of a run is a log point and has a validation
        scalars |= _scalars(run, reached, not due.logs, not due.validates)
    if scalars:
        trail.stage = "logging after"
        for logger in run.loggers:
            logger.log(point.cycle, dict(scalars))
        run.bar.set_postfix_str(format_losses(scalars), refresh=False)
    if due.logs:
        _warn(run, point.cycle)
    if run.store is not None and (due.saves or due.ends or asked or stops):
        trail.stage = "saving after"
        safe = None if due.saves else reached.safe  # else it is the state itself
        where = gather_positions(reached.positions) if run.spans else reached.positions
        _saving.save(run.store, trail, reached.onward, safe, where, scalars)
    if stops and plan.stopping is not None:
        run.bar.set_postfix_str("stopped early", refresh=False)
        _log.send_note(run.loggers, point.cycle, reason(plan.stopping, trail.best))
    return stops


def _scalars(
    run: Run, reached: Reached, logs: bool, validates: bool
) -> dict[str, float]:
    """Record what is due at a point, and return its scalars."""
    plan, trail, point = run.plan, run.trail, reached.point
    scalars = _points.measure(trail, point, reached.clock, plan.donate) if logs else {}
    if validates and plan.validation is not None:
        scores = _points.validate(plan.validation, trail, point, run.spans)
        if plan.checkpoint is not None and plan.checkpoint.of_scores:
            check_best(plan.checkpoint, scores)
        scalars |= scores
    return scalars


def _stops(run: Run, reached: Reached, scalars: dict[str, float]) -> bool:
    """Judge a point where the metric of the early stopping is due."""
    plan, trail, due = run.plan, run.trail, reached.due
    if plan.stopping is None:
        return False
    if not (due.validates if plan.judges_scores else due.logs):
        return False
    trail.stage = "the early stopping after"
    return _points.judge(plan.stopping, trail, reached.point, scalars, plan.donate)


def _warn(run: Run, cycle: int) -> None:
    """Note once that a loss has left the numbers, if nothing else looks after it."""
    losses = _points.turned(run.trail.records) if run.plan.policy is None else []
    if losses:
        _log.send_note(
            run.loggers,
            cycle,
            f"{', '.join(losses)} no longer finite: see `on_nonfinite` to stop there, "
            "to leave such cycles out, or to go back to a checkpoint",
        )


def _positions(sources: Mapping[str, BatchIterator]) -> dict[str, Any]:
    return {name: source.position() for name, source in sources.items()}


def _farewell(run: Run, signals: Sequence[int]) -> str:
    came = f"{signal.Signals(signals[0] if signals else signal.SIGTERM).name} came."
    if run.store is None:
        return came
    path = str(run.store.checkpoint.path)
    return f"{came} All is saved in {path!r}: go on with `resume=True`."
