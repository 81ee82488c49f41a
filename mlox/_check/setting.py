"""What is checked: an engine at a state, with the batches of one cycle, in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from mlox._check.vectors import as_vector
from mlox._cycle.batches import first_window
from mlox._cycle.cycle import Cycle
from mlox._cycle.history import History, LowerRun
from mlox._cycle.sample import sample_batches
from mlox._graph.dependencies import Plan
from mlox._hypergradient.point import EvaluationPoint
from mlox._hypergradient.tasks import losses_of
from mlox._utils.types import Batches, Metrics, PyTree, State


class Arrival(NamedTuple):
    """The end of a problem's window, and its hypergradient there.

    Attributes:
        loss: The loss of the problem, summed over its tasks.
        gradient: The hypergradient, as the engine is configured.
        metrics: What the loss returned, and the solvers' reports.
        state: The state after the rounds below the problem.
        history: What happened in them.
        batches: The batches of the window.
    """

    loss: jax.Array
    gradient: PyTree
    metrics: Metrics
    state: Mapping[str, Any]
    history: History
    batches: Batches


@dataclass(frozen=True)
class Setting:
    """The program that is checked, as a value without arrays.

    Attributes:
        cycle: The cycle.
        name: The problem whose hypergradient is checked.
    """

    cycle: Cycle
    name: str

    @property
    def plan(self) -> Plan:
        """Which answers respond."""
        return self.cycle.plan

    @property
    def layer(self) -> int:
        """The layer of the problem."""
        return self.plan.graph.layer_of[self.name]

    @property
    def movers(self) -> tuple[str, ...]:
        """The problems whose answers respond, from the lowest to the highest."""
        movers = self.plan.movers[self.name]
        return tuple(n for n in self.plan.graph.order if n in movers)

    @property
    def held(self) -> tuple[tuple[str, str], ...]:
        """The pairs (reader, read) of constants that change with the problem's params.

        The hypergradient holds them fixed; a program that is run again does not.
        """
        graph = self.plan.graph
        readers = {self.name, *graph.below[self.name]}
        moving = {self.name, *graph.names_below(self.layer)}
        return tuple((a, b) for a, b in graph.plain if a in readers and b in moving)

    def steps(self, name: str) -> int:
        """Return the steps of a problem in the window."""
        return self.plan.graph.steps_in_window(self.layer, name)

    def arrive(self, state: State, batches: Batches) -> Arrival:
        """Run the rounds below the problem, and differentiate it."""
        cycle, layer = self.cycle, self.layer
        window = first_window(self.plan.graph, self.name, batches)
        run = cycle.run_lowers(layer, state, cycle.start_history(state), window)
        window = sample_batches(self.plan, layer, run, window)
        found, gradient = cycle.differentiate(layer, self.name, run, window)
        loss = losses_of(state[self.name], found.metrics).sum()
        return Arrival(loss, gradient, found.metrics, run.state, run.history, window)

    def point(self, at: Arrival, params: Mapping[str, PyTree]) -> EvaluationPoint:
        """Return the point at the end of the window, with some parameters replaced."""
        run = LowerRun(dict(at.state), at.history, {}, lambda cotangents: cotangents)
        point = self.cycle.point(self.layer, self.name, run, at.batches)
        return point.at_params(params)


def move(state: State, name: str, params: PyTree) -> dict[str, Any]:
    """Return a state with the parameters of one problem replaced."""
    return {**state, name: dataclasses.replace(state[name], params=params)}


def is_finite(tree: PyTree) -> bool:
    """Return whether all numbers of a pytree are finite."""
    return bool(np.isfinite(as_vector(tree)).all())
