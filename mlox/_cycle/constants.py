"""Plain reads: what a step sees of other problems as constants."""

from __future__ import annotations

from collections.abc import Iterable

import jax

from mlox._cycle.history import LowerRun
from mlox._graph.dependencies import Plan
from mlox._graph.graph import Graph
from mlox._hypergradient.point import Constant, constants_of
from mlox._utils.types import State

# A problem n that reads b as a constant sees the parameters that b has when n steps:
# where both step at once, those from before. For that step theta_b is a number like its
# batch: n is stationary there, or not, at this theta_b. So whatever is differentiated
# at the answer of n, by problems above, sees the theta_b of its last step, too, also if
# b has stepped since.


def keep_constants(
    plan: Plan, names: Iterable[str], state: State
) -> dict[str, dict[str, Constant]]:
    """Return what a step of each implicit answer among some reads, and may change."""
    return {
        n: jax.lax.stop_gradient(constants_of(plan.kept_constants[n], state))
        for n in names
        if n in plan.kept_constants
    }


def last_constants(graph: Graph, name: str, run: LowerRun) -> dict[str, Constant]:
    """Return what the last step of a problem read: most of it has not changed since."""
    present = constants_of(graph.constants(name), run.state)
    return {**present, **run.history.constants.get(name, {})}
