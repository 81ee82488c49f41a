"""The one host loop: batches in, states out, with logging and validation.

The device never waits for the host between log points: a dispatch returns before it is
computed, the next batches are gathered meanwhile, and metrics stay on the device.
"""

import itertools
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from mlox import _data, _log, _stopping
from mlox._dispatch import Steps, compiled, copied, gather, lengths, zero_totals
from mlox._points import Validation, judge, measure, shown, validate
from mlox._series import repeat
from mlox._stopping import EarlyStopping, reason
from mlox._trail import History, Point, State, Trail, history_of, stopped


class Plan(NamedTuple):
    """The checked options of a run."""

    train_iters: int
    log_every: int
    valid_every: int
    cycles_per_dispatch: int
    validation: Validation | None
    stopping: EarlyStopping | None
    donate: bool


def run(
    engine: Steps,
    state: State,
    data: Mapping[str, Iterable[Any] | None] | None = None,
    train_iters: int = 1000,
    *,
    validation: Validation | None = None,
    valid_every: int | None = None,
    early_stopping: EarlyStopping | None = None,
    log_every: int | None = None,
    logdir: str | os.PathLike[str] | None = None,
    loggers: Iterable[_log.Logger] | None = None,
    cycles_per_dispatch: int = 1,
    progress: bool | None = None,
    donate: bool = False,
) -> tuple[State, History]:
    """Run `train_iters` cycles; see `mlox.Engine.run` for the arguments."""
    trail = Trail(safe=Point(0, state, None, 0))
    failure: BaseException | None = None
    opened = [_log.stdout_logger()] if loggers is None else list(loggers)
    try:
        series = {} if data is None else data
        _data.check_data(engine.steps_per_cycle, series)
        sources = {
            name: repeat(name, value)
            for name, value in series.items()
            if value is not None
        }
        _check(engine, validation, valid_every, opened)
        _stopping.check_rule(
            early_stopping, engine.steps_per_cycle, validation is not None
        )
        train_iters = _positive("train_iters", train_iters)
        log_every = max(1, train_iters // 20) if log_every is None else log_every
        plan = Plan(
            train_iters,
            _positive("log_every", log_every),
            _positive("valid_every", log_every if valid_every is None else valid_every),
            _positive("cycles_per_dispatch", cycles_per_dispatch),
            validation,
            early_stopping,
            donate,
        )
        opened += _files(logdir)
        with _log.progress_bar(train_iters, progress) as bar:
            _loop(engine, sources, plan, trail, opened, bar)
    except BaseException as error:
        failure = error
    failure = _close(opened, trail, failure)
    if failure is None:
        return trail.final, history_of(trail)
    if trail.stage == "start" or not isinstance(failure, Exception | KeyboardInterrupt):
        raise failure
    raise stopped(trail, failure, train_iters, cycles_per_dispatch) from failure


def _loop(
    engine: Steps,
    sources: dict[str, Iterator[Any]],
    plan: Plan,
    trail: Trail,
    loggers: list[_log.Logger],
    bar: tqdm,
) -> None:
    """Dispatch, gather the next batches meanwhile, then see to what is due."""
    counts = lengths(plan.train_iters, plan.cycles_per_dispatch)
    programs = {count: compiled(engine, count, plan.donate) for count in set(counts)}
    batches = gather(engine, sources, counts[0])
    start = copied(trail.safe.state) if plan.donate else trail.safe.state
    trail.stage = "the step of"
    zeros = zero_totals(engine, counts[0])(start, batches)
    if plan.stopping is not None and not _judges_scores(plan):
        trail.stage = "the early stopping after"
        _stopping.check_metric(plan.stopping, shown(zeros))
    point = Point(0, start, zeros, 0)
    clock: float | None = None
    for count, following in itertools.pairwise((*counts, 0)):
        trail.stage = "the step of"
        state, totals = programs[count](point.state, point.totals, batches)
        point = Point(point.cycle + count, state, totals, point.since)
        trail.points.append(point)
        if clock is None:  # started here, it leaves out tracing and compiling
            clock = time.perf_counter()
        if following:
            trail.stage = "the data of"
            batches = gather(engine, sources, following)
        trail.stage = "the step of"
        if len(trail.points) > 1:
            jax.block_until_ready(trail.points[-2].totals)
        bar.update(count)
        last = following == 0
        logs = last or _passes(plan.log_every, point.cycle, count)
        validates = last or _passes(plan.valid_every, point.cycle, count)
        scalars = _scalars(plan, trail, point, clock, logs, validates)
        stops = _stops(plan, trail, point, scalars, logs, validates) and not last
        if stops:  # the end of a run is a log point and has a validation
            scalars |= _scalars(plan, trail, point, clock, not logs, not validates)
        if scalars:
            trail.stage = "logging after"
            for logger in loggers:
                logger.log(point.cycle, dict(scalars))
            bar.set_postfix_str(_log.summary(scalars), refresh=False)
        if stops and plan.stopping is not None:
            bar.set_postfix_str("stopped early", refresh=False)
            _log.note(loggers, point.cycle, reason(plan.stopping, trail.best))
            return
        if logs:
            point = point._replace(totals=zeros, since=point.cycle)
            clock = time.perf_counter()


def _scalars(
    plan: Plan, trail: Trail, point: Point, clock: float, logs: bool, validates: bool
) -> dict[str, float]:
    """Record what is due at a point, and return its scalars."""
    scalars = measure(trail, point, clock, plan.donate) if logs else {}
    if validates and plan.validation is not None:
        scalars |= validate(plan.validation, trail, point)
    return scalars


def _stops(
    plan: Plan,
    trail: Trail,
    point: Point,
    scalars: dict[str, float],
    logs: bool,
    validates: bool,
) -> bool:
    """Judge a point where the metric of the early stopping is due."""
    if plan.stopping is None or not (validates if _judges_scores(plan) else logs):
        return False
    trail.stage = "the early stopping after"
    return judge(plan.stopping, trail, point, scalars, plan.donate)


def _judges_scores(plan: Plan) -> bool:
    """Say whether the early stopping judges a score, and no mean metric."""
    rule = plan.stopping
    return rule is not None and plan.validation is not None and rule.is_score


def _passes(every: int, cycle: int, count: int) -> bool:
    """Say whether one of the last `count` cycles is a multiple of `every`."""
    return cycle // every > (cycle - count) // every


def _files(logdir: str | os.PathLike[str] | None) -> list[_log.Logger]:
    if logdir is None:
        return []
    lines = _log.json_logger(pathlib.Path(logdir, "metrics.jsonl"))
    return [lines, _log.tensorboard_logger(logdir)]


def _close(
    loggers: list[_log.Logger], trail: Trail, failure: BaseException | None
) -> BaseException | None:
    """Close every logger, and return the first failure of all."""
    for logger in loggers:
        try:
            logger.close()
        except BaseException as error:
            if failure is None:
                failure, trail.stage = error, "closing a logger after"
            else:
                failure.add_note(f"Closing a logger failed, too: {error!r}")
    return failure


def _positive(name: str, value: Any) -> int:
    valid = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not valid or value < 1:
        raise ValueError(
            f"`{name}` must be a positive int, a number of cycles, got {value!r}."
        )
    return int(value)


def _check(
    engine: Steps,
    validation: Validation | None,
    valid_every: int | None,
    loggers: list[_log.Logger],
) -> None:
    """Check what can be checked of the hooks before anything runs."""
    if validation is None and valid_every is not None:
        raise ValueError(
            f"`valid_every` is {valid_every!r}, but there is no `validation`: pass a "
            f"function from a state to a dict of scalars, or drop `valid_every`."
        )
    if validation is not None and not callable(validation):
        raise TypeError(
            f"`validation` must be a function from a state to a dict of scalars, got "
            f"{type(validation).__name__}."
        )
    if validation is not None and "validation" in engine.steps_per_cycle:
        raise ValueError(
            "a problem is called 'validation', so its metrics would be mixed with "
            "those of `validation`: rename the problem."
        )
    for logger in loggers:
        if not isinstance(logger, _log.Logger):
            raise TypeError(
                f"`loggers` must be loggers, with `log` and `close`, got "
                f"{type(logger).__name__}. Call the factory, e.g. stdout_logger()."
            )
