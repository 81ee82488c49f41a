"""Runs: files opened and closed, and what was reached handed back."""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from mlox._checkpoint import options as _checkpoint
from mlox._checkpoint import save as _store
from mlox._checkpoint.save import Store
from mlox._data import stacking as _data
from mlox._data.combinators import open_series
from mlox._data.iterators import BatchIterator
from mlox._logging import base as _log
from mlox._logging.console import progress_bar, stdout_logger
from mlox._logging.jsonl import json_logger
from mlox._logging.tensorboard import tensorboard_logger
from mlox._run import resume as _saving
from mlox._run.arguments import Options, planned
from mlox._run.dispatch import Steps
from mlox._run.loop import Run, loop
from mlox._run.resume import Found
from mlox._run.run_state import History, Point, State, Trail, history_of, stopped
from mlox._sharding.layout import check_placement, layout_of
from mlox._sharding.multihost import (
    annotate_device_error,
    is_device_error,
    select_positions,
)


def run(
    engine: Steps,
    state: State,
    data: Mapping[str, Iterable[Any] | None] | None,
    options: Options,
) -> tuple[State, History]:
    """Run cycles of an engine; see `mlox.Engine.run`."""
    trail = Trail(safe=Point(0, state, None, 0))
    failure: BaseException | None = None
    store: Store | None = None
    layout = layout_of(state)
    speaks, spans = (
        (True, False)
        if layout is None
        else (layout.is_primary, layout.is_multi_process)
    )
    opened: list[_log.Logger] = []
    try:
        _open(opened, options.loggers)
        series = {} if data is None else data
        _data.check_data(engine.steps_per_cycle, series)
        engine.check(state)
        plan = planned(engine, options)
        check_placement(layout, plan.checkpoint is not None)
        opened += _files(options.logdir) if speaks else []
        heard = opened if speaks else []
        found = None
        if plan.checkpoint is not None:
            about, resume = engine.about, options.resume
            found = _saving.begin(plan.checkpoint, about, trail, resume, spans)
            store = _store.opened(plan.checkpoint, about)
        _checkpoint.check_reached(trail.safe.cycle, plan.train_iters)
        sources = _sources(series, found)
        if options.resume:
            _log.resume_loggers(heard, trail.safe.cycle)
        shown = options.progress if speaks else False
        with progress_bar(plan.train_iters, trail.safe.cycle, shown) as bar:
            loop(Run(engine, plan, trail, sources, heard, bar, store, layout), found)
    except BaseException as error:
        failure = annotate_device_error(error) if spans else error
    if spans and is_device_error(failure):
        store = None  # closing it would wait for a process that is gone
    failure = _close(opened, store, trail, failure)
    if failure is None:
        return trail.final, history_of(trail)
    if trail.stage == "start" or not isinstance(failure, Exception | KeyboardInterrupt):
        raise failure
    train_iters, each = options.train_iters, options.cycles_per_dispatch
    raise stopped(trail, failure, train_iters, each) from failure


def _open(opened: list[_log.Logger], loggers: Iterable[_log.Logger] | None) -> None:
    """Take over the loggers, to close them however the run ends, and refuse others."""
    if loggers is None:
        opened.append(stdout_logger())
        return
    if isinstance(loggers, _log.Logger) or not isinstance(loggers, Iterable):
        raise TypeError(
            f"`loggers` is a {type(loggers).__name__}; expected a list of loggers, "
            "e.g. [mlox.stdout_logger()], or () for none."
        )
    given: list[Any] = list(loggers)
    opened += [logger for logger in given if isinstance(logger, _log.Logger)]
    for logger in given:
        if not isinstance(logger, _log.Logger):
            raise TypeError(
                f"`loggers` must be loggers, with `log` and `close`, got "
                f"{type(logger).__name__}. Call the factory, e.g. stdout_logger()."
            )


def _files(logdir: str | os.PathLike[str] | None) -> list[_log.Logger]:
    if logdir is None:
        return []
    if not isinstance(logdir, str | os.PathLike):
        raise TypeError(f"`logdir` is {logdir!r}; expected the path of a folder.")
    lines = json_logger(pathlib.Path(logdir, "metrics.jsonl"))
    return [lines, tensorboard_logger(logdir)]


def _sources(
    series: Mapping[str, Any], found: Found | None
) -> dict[str, BatchIterator]:
    """Open the data, where a run that is resumed was."""
    positions = {} if found is None else select_positions(found.positions)
    return {
        name: open_series(f"data of {name!r}", value, positions.get(name))
        for name, value in series.items()
        if value is not None
    }


def _close(
    loggers: list[_log.Logger],
    store: Store | None,
    trail: Trail,
    failure: BaseException | None,
) -> BaseException | None:
    """Close all that is open, and return the first failure of all."""
    things: list[tuple[str, _log.Logger | Store]] = [("a logger", x) for x in loggers]
    if store is not None:
        things.append(("the checkpoints", store))
    for what, thing in things:
        try:
            thing.close()
        except BaseException as error:
            if failure is None:
                failure, trail.stage = error, f"closing {what} after"
            else:
                failure.add_note(f"Closing {what} failed, too: {error!r}")
    return failure
