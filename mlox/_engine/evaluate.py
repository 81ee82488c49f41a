"""The evaluation of one loss at a state, as a value that can be jitted."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import jax

from mlox._cycle.present import Stream
from mlox._cycle.sample import sample_batch
from mlox._engine.validation import check_batch, check_state
from mlox._graph.dependencies import Plan
from mlox._hypergradient.cost import cost
from mlox._hypergradient.point import present_point
from mlox._problem.task_chunk import tasks_of_batches
from mlox._utils.types import Metrics, PyTree, State


@dataclass(frozen=True)
class Evaluation:
    """The loss of a problem and its metrics, without an update; compared by value.

    Attributes:
        plan: The plan of the engine.
        name: The problem.
        problems: The structure of the problems, as for `mlox._engine.step.Step`.
    """

    plan: Plan
    name: str
    problems: Hashable

    def __call__(self, state: State, batch: PyTree, rng: jax.Array | None) -> Metrics:
        """Return the loss and its metrics, with `ctx.train` False."""
        graph = self.plan.graph
        check_state(self.plan, state)
        check_batch(self.name, tasks_of_batches(state[self.name]), batch)
        if batch is None and state[self.name].sample is not None:
            # From a key that the loss does not get, as in a step.
            stream = (
                None if rng is None else jax.random.fold_in(rng, int(Stream.SAMPLE))
            )
            point = present_point(graph, state, dict.fromkeys(state, stream))
            batch = sample_batch(self.plan, self.name, point, train=False)
        point = present_point(graph, state, dict.fromkeys(state, rng), batch)
        return cost(self.plan, self.name, point, train=False)[1][0]
