"""Reset: the start of inner loops."""

from __future__ import annotations

from typing import Any

from mlox._cycle.present import Stream, point_of_stream, seen_by
from mlox._graph.dependencies import Plan
from mlox._hypergradient.cost import context_of
from mlox._hypergradient.memory import start_memories
from mlox._hypergradient.point import EvaluationPoint
from mlox._hypergradient.tasks import map_if_tasks
from mlox._problem.optimizer import restart
from mlox._problem.own_reset import OwnReset
from mlox._problem.problem import Problem
from mlox._utils.describe import annotate_errors
from mlox._utils.types import PyTree, State

# The window of an upper x starts at y_0 = reset(y, x), with a fresh optimizer. The
# start is computed inside what the pull-back of the window differentiates, so
#
#     dy_T/dx = sum over the steps of their responses + dy_T/dy_0 dreset/dx,
#
# which for reset(y, x) = x alone is MAML (Finn, Abbeel and Levine 2017).


def start_inner_loops(plan: Plan, layer: int, state: State) -> State:
    """Return the state at the start of the inner loops in a layer's window."""
    names = [
        n
        for n in plan.graph.names_below(layer)
        if n in state
        and state[n].reset is not None
        and plan.graph.inner_layer[n] == layer
    ]
    if not names:
        return state
    started = {**state, **{n: _reset(plan, n, state) for n in names}}
    return start_memories(plan, started, lambda k, b: k in names)


def forget_inner_loops(
    plan: Plan, layer: int, state: dict[str, Problem]
) -> dict[str, Problem]:
    """Return the state where a layer's problems remember no loops that were reset."""
    below = plan.graph.names_below(layer)
    names = {n for n in below if n in state and state[n].reset is not None}
    if not names:
        return state
    uppers = plan.graph.layers[layer]
    return start_memories(
        plan, state, lambda k, b: k in uppers and not names.isdisjoint(b.names)
    )


def _reset(plan: Plan, name: str, state: State) -> Problem:
    reset: Any = state[name].reset

    def start(one: EvaluationPoint) -> PyTree:
        params = one.params[name]
        with annotate_errors(f"reset of problem {name!r}", params=params):
            return reset(params, context_of(plan, name, one))

    def begin(problem: Problem) -> Problem:
        seen = seen_by(plan, name, {**state, name: problem})
        point = point_of_stream(plan.graph, seen, Stream.RESET)
        return restart(problem, map_if_tasks(start, name, point))

    if isinstance(reset, OwnReset):
        return reset.begin(state[name], begin)
    return begin(state[name])
