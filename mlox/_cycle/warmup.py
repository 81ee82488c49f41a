"""Warm-up: a problem waits until those below it have made some steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp

from mlox._problem.problem import Problem

Outcome = TypeVar("Outcome")


def step_unless_waiting(
    below: Iterable[Problem],
    step: Callable[[], Outcome],
    wait: Callable[[], Outcome],
) -> Outcome:
    """Return the outcome of a step, or of waiting while a problem below warms up."""
    ready = [p.step > p.warmup_steps for p in below if p.warmup_steps > 0]
    return jax.lax.cond(jnp.stack(ready).all(), step, wait) if ready else step()
