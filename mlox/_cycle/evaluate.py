"""The evaluation of one loss at a state, as a value that can be jitted."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from mlox._cycle.cycle import State
from mlox._cycle.hooks import SAMPLE, sampled_at
from mlox._engine.validation import check_state
from mlox._graph.dependencies import Plan
from mlox._hypergradient.lagrangian import Objective
from mlox._hypergradient.point import EvaluationPoint
from mlox._utils.types import PyTree


@dataclass(frozen=True)
class Evaluation:
    """The loss of a problem and its metrics, without an update; compared by value.

    Attributes:
        plan: The plan of the engine.
        name: The problem.
    """

    plan: Plan
    name: str

    def __call__(
        self, state: State, batch: PyTree, rng: jax.Array | None
    ) -> dict[str, jax.Array]:
        """Evaluate the loss with `ctx.train` False."""
        check_state(self.plan, state)
        objective = Objective(self.plan)
        if batch is None and state[self.name].sample is not None:
            # From a key that the loss does not get, as in a step.
            stream = None if rng is None else jax.random.fold_in(rng, SAMPLE)
            values = EvaluationPoint.present(state, dict.fromkeys(state, stream))
            batch = sampled_at(objective, self.name, values, train=False)
        values = EvaluationPoint.present(state, dict.fromkeys(state, rng), batch)
        return objective.cost(self.name, values, train=False)[1][0]
