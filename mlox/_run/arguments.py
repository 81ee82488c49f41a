"""The arguments of a run, checked before anything runs."""

from __future__ import annotations

import dataclasses
import os
from typing import NamedTuple

from mlox._checkpoint.options import Checkpoint, check_checkpoint
from mlox._run.dispatch import Step
from mlox._run.early_stopping import EarlyStopping, check_rule
from mlox._run.nonfinite import Policy
from mlox._utils.fields import (
    COUNT,
    FLAG,
    FUNCTION,
    PATH,
    Kind,
    check,
    instance_of,
    optional,
)
from mlox._utils.types import Validation


class Due(NamedTuple):
    """The actions that are due at a point of a run; at the end all but saving."""

    logs: bool
    validates: bool
    saves: bool
    ends: bool


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The arguments of a run, see `mlox.Engine.run`."""

    train_iters: int
    validation: Validation | None
    valid_every: int | None
    early_stopping: EarlyStopping | None
    log_every: int | None
    logdir: str | os.PathLike[str] | None
    cycles_per_dispatch: int
    progress: bool | None
    donate: bool
    checkpoint: Checkpoint | None
    resume: bool
    policy: Policy | None

    @property
    def log_interval(self) -> int:
        """Cycles between log points; by default there are 20 log points."""
        return self.log_every or max(1, self.train_iters // 20)

    @property
    def valid_interval(self) -> int:
        """Cycles between validations; by default those between log points."""
        return self.valid_every or self.log_interval

    @property
    def stops_by_score(self) -> bool:
        """Whether early stopping uses a validation score, and not a mean metric."""
        rule = self.early_stopping
        return rule is not None and self.validation is not None and rule.uses_score

    def due(self, cycle: int, count: int) -> Due:
        """Return the actions after a cycle, the last one of a dispatch of `count`."""
        ends, before = cycle == self.train_iters, cycle - count
        log_every, valid_every = self.log_interval, self.valid_interval
        every = None if self.checkpoint is None else self.checkpoint.every
        # The dispatch contains a multiple if the quotient has increased.
        return Due(
            ends or cycle // log_every > before // log_every,
            ends or cycle // valid_every > before // valid_every,
            every is not None and cycle // every > before // every,
            ends,
        )


KINDS: dict[str, Kind] = {
    "train_iters": COUNT,
    "validation": optional(FUNCTION),
    "valid_every": optional(COUNT),
    "early_stopping": optional(instance_of(EarlyStopping, "a mlox.EarlyStopping")),
    "log_every": optional(COUNT),
    "logdir": optional(PATH),
    "cycles_per_dispatch": COUNT,
    "progress": optional(FLAG),
    "donate": FLAG,
}
HINTS = {
    "validation": "Pass a function from a state to a dict of scalars.",
    "early_stopping": (
        "Pass e.g. mlox.EarlyStopping('validation/accuracy', mode='max')."
    ),
}


def check_config(step: Step, config: RunConfig) -> RunConfig:
    """Validate the arguments of a run; return plain integers and an absolute folder.

    Raises:
        TypeError: If one has a wrong type.
        ValueError: If one has a wrong value, or contradicts another one.
    """
    for name, kind in KINDS.items():
        check(f"`{name}`", vars(config)[name], kind, HINTS.get(name, ""))
    problems, validated = step.steps_per_cycle, config.validation is not None
    if config.valid_every is not None and not validated:
        raise ValueError(
            f"`valid_every` is {config.valid_every}, but there is no `validation`: "
            "pass a function from a state to a dict of scalars, or drop `valid_every`."
        )
    for option, name, value in (
        ("validation", "validation", config.validation),
        ("on_nonfinite", "run", config.policy),
    ):
        if value is not None and name in problems:
            raise ValueError(
                f"a problem is called {name!r}, so its metrics would be mixed with "
                f"those of `{option}`: rename the problem."
            )
    if config.policy is Policy.RESTORE and config.checkpoint is None:
        raise ValueError(
            "`on_nonfinite` is 'restore', but there is no `checkpoint` to go back to: "
            "pass a mlox.Checkpoint, or on_nonfinite='skip'."
        )
    if config.early_stopping is not None:
        check_rule(config.early_stopping, problems, step.reporters, validated)
    valid_every = config.valid_interval if validated else None
    check_checkpoint(config.checkpoint, config.resume, config.log_interval, valid_every)
    checkpoint = config.checkpoint
    if checkpoint is not None:
        checkpoint = dataclasses.replace(checkpoint, directory=checkpoint.path)
    return dataclasses.replace(
        config,
        checkpoint=checkpoint,
        train_iters=int(config.train_iters),
        log_every=int(config.log_interval),
        valid_every=int(config.valid_interval),
        cycles_per_dispatch=int(config.cycles_per_dispatch),
    )
