"""Values that are jitted once: equal ones share what is compiled."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import jax

from mlox._problem.problem import Problem
from mlox._sharding.layout import Layout
from mlox._utils.types import Batches, Metrics, State

# A value is a key together with its problems. If engines with other losses had equal
# keys, they would share one jit, which holds a program for every loss that it has seen:
# 3 to 5 MiB for each small engine, for ever.


class CompiledStep(Protocol):
    """What `Engine.compile` returns: a function that `jax.jit` has made."""

    def __call__(
        self, state: State, batches: Batches
    ) -> tuple[dict[str, Problem], Metrics]:
        """Run one cycle, see `Engine.step`."""
        ...

    def trace(self, state: State, batches: Batches) -> jax.stages.Traced:
        """Trace it, for arrays or `jax.ShapeDtypeStruct`s."""
        ...

    def lower(self, state: State, batches: Batches) -> jax.stages.Lowered:
        """Trace and lower it: `.compile()` gives the program and its figures."""
        ...


@functools.lru_cache(maxsize=32)
def jit_value(value: Any, donate: bool, layout: Layout | None) -> Any:
    """Jit a value; JAX itself forgets a function with the last reference to it."""
    donated = (0,) if donate else ()
    if layout is None:
        return jax.jit(value, donate_argnums=donated, inline=True)

    def step(state: State, batches: Batches) -> tuple[State, Metrics]:
        state, metrics = value(state, batches)
        return layout.constrain(state), metrics

    return jax.jit(step, donate_argnums=donated)
