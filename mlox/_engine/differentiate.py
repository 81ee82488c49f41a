"""The hypergradient of one problem at a state, as a value that can be jitted."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from mlox._engine.dead_edges import warn_of_dead_edges
from mlox._engine.step import Step
from mlox._utils.types import Batches, PyTree, State


@dataclass(frozen=True)
class Differentiation:
    """The loss of a problem and its hypergradient; compared by value.

    Attributes:
        step: The step of the engine.
        name: The problem.
    """

    step: Step
    name: str

    def __call__(self, state: State, batches: Batches) -> tuple[jax.Array, PyTree]:
        """Return the loss, and a pytree like the problem's params."""
        cycle = self.step.prepare(state, batches)
        below = cycle.graph.names_below(cycle.graph.layer_of[self.name])
        with warn_of_dead_edges(cycle, (self.name, *below), state, batches):
            return cycle.hypergradient(state, batches, self.name)
