"""Runs: options checked, files opened and closed, and what was reached handed back."""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mlox import _checkpoint, _data, _faults, _log, _saving, _stopping, _store
from mlox._checkpoint import Checkpoint
from mlox._dispatch import Steps
from mlox._loop import Plan, Run, loop
from mlox._points import Validation
from mlox._series import repeat
from mlox._stopping import EarlyStopping
from mlox._store import Store
from mlox._tensorboard import tensorboard_logger
from mlox._trail import History, Point, State, Trail, history_of, stopped


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
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    on_nonfinite: _faults.Policy | None = None,
) -> tuple[State, History]:
    """Run `train_iters` cycles; see `mlox.Engine.run` for the arguments."""
    trail = Trail(safe=Point(0, state, None, 0))
    failure: BaseException | None = None
    store: Store | None = None
    opened: list[_log.Logger] = []
    try:
        _open(opened, loggers)
        series = {} if data is None else data
        _data.check_data(engine.steps_per_cycle, series)
        _check(engine, validation, valid_every)
        _check_flags({"donate": (donate, False), "progress": (progress, True)})
        engine.check(state)
        train_iters = _positive("train_iters", train_iters)
        log_every = max(1, train_iters // 20) if log_every is None else log_every
        plan = Plan(
            train_iters,
            _positive("log_every", log_every),
            _positive("valid_every", log_every if valid_every is None else valid_every),
            _positive("cycles_per_dispatch", cycles_per_dispatch),
            validation,
            early_stopping,
            checkpoint,
            on_nonfinite,
            donate,
        )
        _check_values(engine, plan, resume)
        opened += _files(logdir)
        found = None
        if checkpoint is not None:
            found = _saving.begin(checkpoint, engine.about, trail, resume)
            store = _store.opened(checkpoint, engine.about)
        _checkpoint.check_reached(trail.safe.cycle, train_iters)
        positions = {} if found is None else found.positions
        sources = {
            name: repeat(name, value, positions.get(name))
            for name, value in series.items()
            if value is not None
        }
        if resume:
            _log.resume(opened, trail.safe.cycle)
        with _log.progress_bar(train_iters, trail.safe.cycle, progress) as bar:
            loop(Run(engine, plan, trail, sources, opened, bar, store), found)
    except BaseException as error:
        failure = error
    failure = _close(opened, store, trail, failure)
    if failure is None:
        return trail.final, history_of(trail)
    if trail.stage == "start" or not isinstance(failure, Exception | KeyboardInterrupt):
        raise failure
    raise stopped(trail, failure, train_iters, cycles_per_dispatch) from failure


def _check_values(engine: Steps, plan: Plan, resume: bool) -> None:
    """Check those options that are values against all others."""
    problems, validated = engine.steps_per_cycle, plan.validation is not None
    _stopping.check_rule(plan.stopping, problems, validated)
    recorded = {"mean": plan.log_every}
    recorded |= {"score": plan.valid_every} if validated else {}
    _checkpoint.check_checkpoint(plan.checkpoint, resume, recorded)
    _faults.check_policy(plan.policy, plan.checkpoint is not None, problems)


def _files(logdir: str | os.PathLike[str] | None) -> list[_log.Logger]:
    if logdir is None:
        return []
    if not isinstance(logdir, str | os.PathLike):
        raise TypeError(f"`logdir` is {logdir!r}; expected the path of a folder.")
    lines = _log.json_logger(pathlib.Path(logdir, "metrics.jsonl"))
    return [lines, tensorboard_logger(logdir)]


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


def _check_flags(flags: Mapping[str, tuple[Any, bool]]) -> None:
    """Refuse what is neither True nor False, nor None where that has a meaning."""
    for name, (value, optional) in flags.items():
        if not isinstance(value, bool) and not (optional and value is None):
            choices = "True, False or None" if optional else "True or False"
            raise TypeError(f"`{name}` is {value!r}; expected {choices}.")


def _open(opened: list[_log.Logger], loggers: Iterable[_log.Logger] | None) -> None:
    """Take over the loggers, to close them however the run ends, and refuse others."""
    if loggers is None:
        opened.append(_log.stdout_logger())
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
