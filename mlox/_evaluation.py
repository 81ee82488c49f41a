"""The evaluation of one loss at a state, as a value that can be jitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from mlox._checks import check_state
from mlox._cycle import State
from mlox._hooks import SAMPLE
from mlox._objective import Draw, Objective, Values
from mlox._plan import Plan

PyTree = Any


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
        if batch is None and state[self.name].sample is not None:
            batch = self.sampled(state, rng)
        values = _at(state, batch, rng)
        _, (metrics, _) = Objective(self.plan).cost(self.name, values, train=False)
        return metrics

    def sampled(self, state: State, rng: jax.Array | None) -> PyTree:
        """Sample a batch as a step does, from a key that the loss does not get."""
        rng = None if rng is None else jax.random.fold_in(rng, SAMPLE)
        values = _at(state, None, rng)
        ctx = Objective(self.plan).context(self.name, values, train=False)
        sample: Any = state[self.name].sample
        return sample(state[self.name].params, ctx)


def _at(state: State, batch: PyTree, rng: jax.Array | None) -> Values:
    """Gather what a loss sees at a state."""
    draws = {
        n: Draw(problem, batch, rng, problem.step, problem.model_state, None)
        for n, problem in state.items()
    }
    return Values({n: problem.params for n, problem in state.items()}, {}, draws)
