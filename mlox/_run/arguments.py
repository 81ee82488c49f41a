"""The options of a run, and the plan that they make once they are checked."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlox._checkpoint import options as _checkpoint
from mlox._checkpoint.options import Checkpoint
from mlox._logging import base as _log
from mlox._run import early_stopping as _stopping
from mlox._run import nonfinite as _faults
from mlox._run.dispatch import Steps
from mlox._run.early_stopping import EarlyStopping
from mlox._run.loop import Plan
from mlox._run.metrics import Validation


@dataclass(frozen=True)
class Options:
    """What was asked for; see `mlox.Engine.run`."""

    train_iters: int
    validation: Validation | None
    valid_every: int | None
    early_stopping: EarlyStopping | None
    log_every: int | None
    logdir: str | os.PathLike[str] | None
    loggers: Iterable[_log.Logger] | None
    cycles_per_dispatch: int
    progress: bool | None
    donate: bool
    checkpoint: Checkpoint | None
    resume: bool
    on_nonfinite: _faults.Policy | None


def planned(engine: Steps, options: Options) -> Plan:
    """Check all options, and fill in what was left open.

    Raises:
        TypeError: If one is of a wrong kind.
        ValueError: If one has a wrong value, or does not go with the others.
    """
    _check(engine, options.validation, options.valid_every)
    flags = {"donate": (options.donate, False), "progress": (options.progress, True)}
    _check_flags(flags)
    train_iters = _positive("train_iters", options.train_iters)
    every, valid_every = options.log_every, options.valid_every
    every = max(1, train_iters // 20) if every is None else every
    plan = Plan(
        train_iters,
        _positive("log_every", every),
        _positive("valid_every", every if valid_every is None else valid_every),
        _positive("cycles_per_dispatch", options.cycles_per_dispatch),
        options.validation,
        options.early_stopping,
        options.checkpoint,
        options.on_nonfinite,
        options.donate,
    )
    _check_values(engine, plan, options.resume)
    return plan


def _check_values(engine: Steps, plan: Plan, resume: bool) -> None:
    """Check those options that are values against all others."""
    problems, validated = engine.steps_per_cycle, plan.validation is not None
    _stopping.check_rule(plan.stopping, problems, validated)
    recorded = {"mean": plan.log_every}
    recorded |= {"score": plan.valid_every} if validated else {}
    _checkpoint.check_checkpoint(plan.checkpoint, resume, recorded)
    _faults.check_policy(plan.policy, plan.checkpoint is not None, problems)


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


def _positive(name: str, value: Any) -> int:
    valid = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not valid or value < 1:
        raise ValueError(
            f"`{name}` must be a positive int, a number of cycles, got {value!r}."
        )
    return int(value)
