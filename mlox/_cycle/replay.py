"""Replay: the last window of a problem once more, as a function of those above."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from mlox._cycle.batches import last_steps
from mlox._cycle.history import History, LowerRun, narrow
from mlox._graph.dependencies import Plan
from mlox._graph.graph import Graph
from mlox._utils.types import Batches, Metrics, Params, State

# An unrolled answer y_u under an implicit problem p responds inside p's residual,
#
#     G_p(theta_p) = dC_p/dtheta_p (theta_p, run(start, theta_p)),
#
# where `run` is the window that led to y_u, from where it started, with its own batches
# and keys. Holding y_u fixed there leaves the hypergradient 4.5 % off.


class RunsRounds(Protocol):
    """Run the rounds of a layer's window: a hashable value."""

    def run_rounds(
        self, layer: int, state: State, history: History, batches: Batches
    ) -> tuple[State, History, Metrics]:
        """Return the state, the history and the metrics after."""
        ...


@dataclass(frozen=True)
class _Replay:
    """A replay without its arrays: compared by value, so that equal ones share a trace.

    Attributes:
        cycle: Runs the rounds.
        layer: The layer whose window is run.
        above: The problems that it reads, whose parameters are given.
    """

    cycle: RunsRounds
    layer: int
    above: tuple[str, ...]

    def __call__(
        self, state: State, history: History, batches: Batches, params: Params
    ) -> State:
        """Return the state that the rounds lead to."""
        moved = {n: dataclasses.replace(state[n], params=params[n]) for n in self.above}
        return self.cycle.run_rounds(self.layer, {**state, **moved}, history, batches)[
            0
        ]


def make_replay(
    cycle: RunsRounds,
    graph: Graph,
    name: str,
    layer: int,
    run: LowerRun,
    batches: Batches,
) -> Callable[[Params], State]:
    """Return the function params -> state that runs the last window of a lower again.

    `run` and `batches` are those of the window of `layer`, which evaluates the lower.
    """
    own = graph.layer_of[name]
    start = run.history.starts[name]
    inside = [n for n in start if graph.layer_of[n] < own]
    steps = {n: graph.steps_in_window(own, n) for n in inside}
    read = {m for n in inside for m in graph.reads(n)}
    above = tuple(n for n in run.state if n in read and n not in start)
    # A Partial makes its arrays arguments: a residual must not close over tracers.
    function: Any = jax.tree_util.Partial(
        _Replay(cycle, own, above),
        {n: run.state[n] for n in above} | start,
        narrow(run.history, {*start, *above}),
        {n: last_steps(graph, layer, n, batches, steps[n]) for n in inside},
    )
    return function


def find_starts(
    plan: Plan, names: Iterable[str], state: State
) -> Mapping[str, dict[str, Any]]:
    """Return what a replay of each replayed problem among some runs, as constants.

    With it, what the problems that run see of those above as constants. A state that is
    about a problem which reads a replayed one, and does not run it, has nothing of it.
    """
    parts = {n: (*plan.rerun[n], *plan.held[n]) for n in names if n in plan.rerun}
    return {
        n: jax.lax.stop_gradient({m: state[m] for m in part})
        for n, part in parts.items()
        if all(m in state for m in part)
    }
