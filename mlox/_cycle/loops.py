"""The loops of a window: each pulls the cotangents of its own answers back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from mlox._cycle.history import History
from mlox._cycle.present import Stream, key_of_stream
from mlox._cycle.unrolled import Answers, answers_of
from mlox._graph.dependencies import Plan
from mlox._utils.types import Metrics, Params, State

Ran = tuple[State, History, Metrics]

# With the answers y_a of one kind of loop and y_b of another, both functions of x,
#
#     dC/dx = C_x + (dy_a/dx)^T dC/dy_a + (dy_b/dx)^T dC/dy_b,
#
# a sum in which every kind makes a run of its own, for its own answers.


def run_with_pull_back(
    plan: Plan,
    layer: int,
    state: State,
    run: Callable[[Params], Ran],
    params: Params,
) -> tuple[Ran, Callable[[Answers], Params]]:
    """Make `run(params)`, the window of a layer from a state.

    Returns:
        What it returns, and a function from cotangents of the layer's unrolled answers
        to cotangents of `params`.
    """
    kinds: dict[Any, list[str]] = {}
    for u in [u for u in plan.unrolled_through(layer) if u in state]:
        kinds.setdefault(state[u].method.pull, []).append(u)

    if not params:
        return run(params), lambda cotangents: cotangents.params

    def run_for(names: list[str], params: Params) -> tuple[Answers, Ran]:
        after = run(params)
        return answers_of(plan, names, after[0]), after

    ran: list[tuple[Ran, Callable[[Answers], Params]]] = [
        pull(lambda x, n=names: run_for(n, x), params, _key_of(names, state))
        for pull, names in kinds.items()
    ]

    def pull_back(arrived: Answers) -> Params:
        parts = [
            back(answers_of(plan, names, after[0]).fill(arrived))
            for names, (after, back) in zip(kinds.values(), ran, strict=True)
            if not arrived.params.keys().isdisjoint(names)
        ]
        return jax.tree.map(lambda *slopes: sum(slopes[1:], slopes[0]), *parts)

    return ran[0][0], pull_back


def _key_of(names: list[str], state: State) -> jax.Array | None:
    """Return a key of the window, from the first problem that has one."""
    keys = (key_of_stream(state[n], Stream.LOOP) for n in names)
    return next((key for key in keys if key is not None), None)
