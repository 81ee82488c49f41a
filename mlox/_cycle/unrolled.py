"""Unrolled answers: what of them moves, and what is pulled back through their loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlox._cycle.history import LowerRun
from mlox._graph.dependencies import Plan
from mlox._hypergradient.adjoint import Hypergradient
from mlox._problem.responsive import responsive_state
from mlox._utils.depends import depends
from mlox._utils.tree import combine
from mlox._utils.types import Batches, PyTree, State

# The loop of an unrolled answer moves its parameters and its mutable state alike: with
# (y, s)_t = Phi((y, s)_{t-1}, x) a cost C(x, y_T, s_T) has the derivative
#
#     dC/dx + <dC/dy_T, dy_T/dx> + <dC/ds_T, ds_T/dx>.
#
# Most states are read by nobody, such as batch statistics. Then the last term costs
# nothing: the state is an output of the differentiated loop only where a loss reads it.


class Answers(NamedTuple):
    """The unrolled answers of a layer's window, or their cotangents.

    Attributes:
        params: Their parameters.
        states: The floating parts of the mutable states that somebody reads.
    """

    params: dict[str, PyTree]
    states: dict[str, PyTree]


def answers_of(plan: Plan, layer: int, state: State) -> Answers:
    """Return the unrolled answers that respond through the window of a layer."""
    names = plan.unrolled_through(layer)
    return Answers(
        {u: state[u].params for u in names},
        {u: responsive_state(state[u]) for u in names if u in plan.stateful},
    )


def pull_back(
    plan: Plan, layer: int, name: str, run: LowerRun, found: Hypergradient
) -> PyTree:
    """Return the part of a gradient that flows through unrolled answers."""
    # Other problems of the layer may have further ones: nothing arrives there.
    params, states = jax.tree.map(jnp.zeros_like, answers_of(plan, layer, run.state))
    arrived = {
        u: combine(found.cotangents[u], params[u])
        for u in plan.responses[name].unrolled
    }
    return run.pull(Answers({**params, **arrived}, {**states, **found.states}))[name]


def find_stateful(
    plan: Plan,
    cost: Callable[[State, Batches, str], jax.Array],
    state: State,
    batches: Batches,
) -> frozenset[str]:
    """Return the unrolled problems whose mutable state the loss of another one reads.

    `cost` evaluates the loss of a problem alone, to inspect its program.
    """

    def reads(name: str, u: str) -> bool:
        def value(part: PyTree) -> jax.Array:
            whole = combine(part, state[u].model_state)
            with_part = state[u].replace(model_state=whole)
            return cost({**state, u: with_part}, batches, name)

        return depends(value, responsive_state(state[u]))

    graph = plan.graph
    return frozenset(
        u
        for u in plan.differentiated_at
        if jax.tree.leaves(responsive_state(state[u]))
        and any(reads(n, u) for n in graph.names if u in graph.reads(n))
    )
