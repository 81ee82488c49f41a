"""Where loops start: which uppers a `reset` reads."""

from __future__ import annotations

from typing import Any

from mlox._check.setting import move
from mlox._cycle.reset import start_inner_loops
from mlox._graph.dependencies import Plan
from mlox._utils.depends import depends
from mlox._utils.types import PyTree, State


def find_starts(plan: Plan, name: str, state: State) -> tuple[str, ...]:
    """Return the uppers on which the start of a problem's loop depends."""
    if state[name].reset is None:
        return ()
    layer = plan.graph.inner_layer[name]

    def depends_on(upper: str) -> bool:
        def start(params: PyTree, state: State) -> Any:
            moved = move(state, upper, params)
            return start_inner_loops(plan, layer, moved)[name].params

        return depends(start, state[upper].params, dict(state))

    return tuple(n for n in plan.graph.uppers(name) if depends_on(n))
