"""Warm-up: a problem waits until those below it have made some steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp

from mlox._graph.dependencies import Plan
from mlox._problem.problem import Problem
from mlox._utils.types import State

Outcome = TypeVar("Outcome")


def waits(plan: Plan, name: str, state: State) -> bool:
    """Return whether a problem may have to wait."""
    return any(state[n].warmup_steps > 0 for n in plan.graph.below[name])


def step_unless_waiting(
    below: Iterable[Problem],
    step: Callable[[], Outcome],
    wait: Callable[[], Outcome],
) -> Outcome:
    """Return the outcome of a step, or of waiting while a problem below warms up."""
    ready = [p.step > p.warmup_steps for p in below if p.warmup_steps > 0]
    return jax.lax.cond(jnp.stack(ready).all(), step, wait) if ready else step()
