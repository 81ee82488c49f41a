"""Warn of answers that lag, after one more solve has confirmed it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from mlox._run.dispatch import Step, compile_confirmation
from mlox._run.health import (
    Watch,
    describe_lag,
    describe_unsolved,
    describe_unsymmetric,
)
from mlox._run.run_state import RunState
from mlox._sharding.layout import Layout


def screen_answers(
    step: Step,
    reached: RunState,
    batches: Any,
    count: int,
    layout: Layout | None,
    tell: Callable[[str], None],
) -> RunState:
    """Warn once of each answer that lags, and of each system that is not solved.

    Args:
        step: The step of the run.
        reached: What the run has reached, at a log point.
        batches: The batches of a dispatch, of which the first cycle is used.
        count: The cycles of this dispatch.
        layout: The layout of the state.
        tell: Passes a warning on.
    """

    def screen(watch: Watch) -> Watch:
        if watch.is_unsolved:
            tell(describe_unsolved(watch))
            watch = watch._replace(unsolved=True)
        if watch.is_unsymmetric:
            tell(describe_unsymmetric(watch))
            watch = watch._replace(unsymmetric=True)
        if watch.should_confirm:
            confirm = compile_confirmation(step, watch.upper, count, layout)
            text = _describe(watch, lambda: confirm(reached.point.state, batches))
            if text is not None:
                tell(text)
                watch = watch._replace(told=True)
        return watch

    return reached._replace(watches=tuple(map(screen, reached.watches)))


def _describe(watch: Watch, confirm: Callable[[], Any]) -> str | None:
    """Return the warning of an answer, or None if it does not lag."""
    try:
        found = {name: float(x) for name, x in jax.device_get(confirm()).items()}
    except Exception as error:  # a run does not end because of its screen
        return (
            f"{watch.lower!r} may lag behind {watch.upper!r}, but the solve that would "
            f"confirm it failed ({type(error).__name__}): see mlox.check."
        )
    return describe_lag(watch, found)
