"""Unrolled answers: what of them moves, and what is pulled back through their loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

    def fill(self, arrived: Answers) -> Answers:
        """Return cotangents like these answers: some that arrived, zeros elsewhere."""
        params, states = jax.tree.map(jnp.zeros_like, self)
        return Answers(
            {u: combine(arrived.params.get(u), x) for u, x in params.items()},
            {u: arrived.states.get(u, x) for u, x in states.items()},
        )


def answers_of(plan: Plan, names: Sequence[str], state: State) -> Answers:
    """Return some unrolled answers."""
    return Answers(
        {u: state[u].params for u in names},
        {u: responsive_state(state[u]) for u in names if u in plan.stateful},
    )


def add_unrolled(
    plan: Plan, run: LowerRun, found: Mapping[str, Hypergradient]
) -> dict[str, tuple[Hypergradient, PyTree]]:
    """Return hypergradients with what flows through unrolled answers, and the sums.

    They share one pull-back: no answer of one may respond to another, see
    `mlox._graph.scope.group_pulls`.
    """
    params = {
        u: one.cotangents[u]
        for name, one in found.items()
        for u in plan.responses[name].unrolled
    }
    direct = {n: (one, one.cotangents[n]) for n, one in found.items()}
    if not params:
        return direct
    states = {u: x for one in found.values() for u, x in one.states.items()}
    pulled = run.pull(Answers(params, states))
    return {
        n: (one._replace(pulled=pulled[n]), jax.tree.map(jnp.add, grads, pulled[n]))
        for n, (one, grads) in direct.items()
    }


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
        and any(reads(n, u) for n in graph.names if u in graph.neighbours(n))
    )
