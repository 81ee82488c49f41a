"""An experiment: the compiled programs of a check, and what they return."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlox._check.exact import Exact
from mlox._check.losses import Costs, Slopes
from mlox._check.reference import Reference, Solved, solver_for
from mlox._check.samples import choose_samples
from mlox._check.setting import Arrival, Setting, move
from mlox._check.vectors import as_vector
from mlox._graph.dependencies import Plan
from mlox._utils.types import Batches, PyTree, State
from mlox.methods import Loop, Unrolled


@dataclass(frozen=True, eq=False)
class Experiment:
    """What is checked, with its arrays, in the precision of the references.

    Every program is compiled once, when it is first used.

    Attributes:
        setting: The program that is checked.
        state: The state.
        batches: The batches of one cycle.
    """

    setting: Setting
    state: State
    batches: Batches

    @property
    def name(self) -> str:
        """The upper."""
        return self.setting.name

    @cached_property
    def _arrive(self) -> Callable[[State, Batches], Arrival]:
        return jax.jit(self.setting.arrive)

    @cached_property
    def arrival(self) -> Arrival:
        """The end of the window, and the configured hypergradient there."""
        return self._arrive(self.state, self.batches)

    def train(self, params: PyTree) -> Arrival:
        """Return the end of the window for other parameters of the upper."""
        return self._arrive(move(self.state, self.name, params), self.batches)

    def unroll(self) -> Arrival:
        """Return the end of the window, each answer differentiated as well as it can.

        Through all steps of its window, or by an exact solve.
        """
        exact = Exact(solver_for(self.unknowns))
        state = {
            n: dataclasses.replace(
                p, method=Unrolled() if isinstance(p.method, Loop) else exact
            )
            for n, p in self.state.items()
        }
        cycle = dataclasses.replace(self.setting.cycle, plan=self.total)
        setting = dataclasses.replace(self.setting, cycle=cycle)
        return jax.jit(setting.arrive)(state, self.batches)

    @cached_property
    def params(self) -> dict[str, PyTree]:
        """The parameters of the upper and of its answers at the end of the window."""
        names = (self.name, *self.setting.movers)
        return {n: self.arrival.state[n].params for n in names}

    @cached_property
    def unknowns(self) -> int:
        """The number of parameters of all answers."""
        movers = self.setting.movers
        return sum(as_vector(self.state[n].params).size for n in movers)

    @property
    def total(self) -> Plan:
        """The plan in which every answer responds in full."""
        plan = self.setting.plan
        everyone = frozenset(plan.graph.names)
        return dataclasses.replace(plan, can_be_total=everyone, total=True)

    @cached_property
    def chosen(self) -> dict[str, list[int]]:
        """The steps of each answer's window that are its samples."""
        return {
            n: choose_samples(
                1 if self.state[n].sample is not None else self.setting.steps(n),
                self.arrival.batches[n],
                self.state[n].rng,
            )
            for n in self.setting.movers
        }

    @property
    def samples(self) -> int:
        """The largest number of samples of an answer."""
        return max(len(steps) for steps in self.chosen.values())

    def one(self, sample: int = -1) -> dict[str, jax.Array]:
        """Return the weights of one sample alone; the last one is the program's."""
        return {
            n: self._weights(np.eye(len(steps))[max(sample, -1) % len(steps)])
            for n, steps in self.chosen.items()
        }

    @property
    def even(self) -> dict[str, jax.Array]:
        """The weights of one large batch."""
        return {
            n: self._weights(np.full(len(steps), 1 / len(steps)))
            for n, steps in self.chosen.items()
        }

    def _weights(self, weights: np.ndarray) -> Any:
        dtype = jnp.result_type(*jax.tree.leaves(self.params))
        return np.asarray(weights, dtype)

    def reference(self, plan: Plan) -> Callable[..., Solved]:
        """Return the compiled references of a plan, see `Reference`."""
        value = Reference(self.setting, plan, self.chosen, solver_for(self.unknowns))
        return jax.jit(value)

    @cached_property
    def _reference(self) -> Callable[..., Solved]:
        return self.reference(self.total)

    def solve(
        self,
        params: Mapping[str, PyTree],
        weights: Mapping[str, jax.Array],
        most: int = 0,
        at: Arrival | None = None,
    ) -> Solved:
        """Return a reference after at most some Newton steps on the answers."""
        at = self.arrival if at is None else at
        return self._reference(at, dict(params), dict(weights), np.int32(most))

    @cached_property
    def costs(self) -> Costs:
        """The costs as functions of the parameters."""
        solver = solver_for(self.unknowns)
        return Costs(Reference(self.setting, self.total, self.chosen, solver))

    @cached_property
    def _slopes(self) -> Any:
        return jax.jit(self.costs.slopes)

    @cached_property
    def _values(self) -> Any:
        return jax.jit(self.costs.values)

    @cached_property
    def _curved(self) -> Any:
        return jax.jit(self.costs.curved)

    def slopes(self, params: Mapping[str, PyTree]) -> Slopes:
        """Return the costs and their gradients at the program's own samples."""
        return self._slopes(self.arrival, dict(params), self.one())

    def values(
        self, at: Arrival | None = None, params: Mapping[str, PyTree] | None = None
    ) -> dict[str, float]:
        """Return the costs at the end of the window, by a trace of their own."""
        at = self.arrival if at is None else at
        params = self.params if params is None else params
        found = self._values(at, dict(params), self.one())
        return {n: float(value) for n, value in found.items()}

    def curved(
        self, params: Mapping[str, PyTree], direction: Mapping[str, PyTree]
    ) -> dict[str, PyTree]:
        """Return the derivative of each own gradient along a direction."""
        return self._curved(self.arrival, dict(params), self.one(), dict(direction))
