"""The rounds of a window: a scan over the windows of the layer below."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlox._cycle.batches import split_rounds
from mlox._cycle.budget import RoundSize, choose_levels, measure_round
from mlox._cycle.checkpointed_scan import checkpointed_scan
from mlox._cycle.history import History
from mlox._cycle.truncate import Phase, cut_derivatives, split_phases
from mlox._graph.dependencies import Plan
from mlox._problem.problem import Problem
from mlox._utils.types import Batches, Metrics, Params, State

Window = Callable[
    [State, History, Batches], tuple[dict[str, Problem], History, Metrics]
]


def scan_rounds(
    plan: Plan,
    layer: int,
    window: Window,
    unroll: bool,
    state: State,
    history: History,
    batches: Batches,
    early: Window | None = None,
) -> tuple[State, History, Metrics]:
    """Run the rounds of a layer's window, each a `window` of the layer below.

    If `early` is given, it runs in place of `window` before the last round, and the
    metrics are those of the last round alone, without an axis of rounds.
    """
    graph = plan.graph
    length = graph.layer_period[layer] // graph.layer_period[layer - 1]
    names = [n for n in graph.names_below(layer) if n in batches]
    counts = {n: graph.steps_in_window(layer - 1, n) for n in names}
    if length == 1:
        return window(state, history, {n: batches[n] for n in names})
    xs = {n: split_rounds(batches[n], length, counts[n]) for n in names}
    parts: list[Metrics] = []
    for phase in split_phases(plan, layer, state, length, early is not None):
        state = cut_derivatives(state, phase)
        if early is not None and phase.rounds.stop == length:
            last = {n: jax.tree.map(lambda x: x[-1], xs[n]) for n in names}
            return window(state, history, last)
        # The problems above stay as they are: later phases respond to them.
        start = jax.lax.stop_gradient(state) if phase.constant else state
        below, history, metrics = _scan(
            window if early is None else early,
            start,
            history,
            xs,
            phase.rounds,
            len(phase.rounds) == length,
            _choose_levels(plan, layer, window, start, history, xs, phase),
            unroll,
        )
        state = {**state, **below}
        parts.append(_join_rounds(metrics, counts))
    metrics = jax.tree.map(lambda *phases: jnp.concatenate(phases), *parts)
    return state, history, metrics


def _scan(
    window: Window,
    state: State,
    history: History,
    xs: Batches,
    rounds: range,
    whole: bool,
    levels: int,
    unroll: bool,
) -> tuple[dict[str, Problem], History, Metrics]:
    # What stands above the window is closed over: it is constant in the loop, and its
    # cotangents are summed outside of the carry.
    def body(
        carry: tuple[State, History], x: Batches
    ) -> tuple[tuple[State, History], Metrics]:
        below, history = carry
        after, history, metrics = window({**state, **below}, history, x)
        return ({n: after[n] for n in xs}, history), metrics

    start = ({n: state[n] for n in xs}, history)
    (below, history), metrics = checkpointed_scan(
        body, start, xs, rounds, whole, levels, unroll
    )
    return below, history, metrics


def _choose_levels(
    plan: Plan,
    layer: int,
    window: Window,
    state: State,
    history: History,
    xs: Batches,
    phase: Phase,
) -> int:
    """Return the levels of checkpoints in a phase of a layer's window."""
    if phase.constant:
        return 0
    loops = {u: state[u] for u in plan.unrolled_through(layer) if u in state}

    def measure() -> RoundSize:
        x = jax.tree.map(lambda x: x[0], xs)
        uppers = {n: problem.params for n, problem in state.items() if n not in xs}

        def step(carry: tuple[State, History], uppers: Params) -> tuple[State, History]:
            below, history = carry
            moved = {
                n: dataclasses.replace(state[n], params=p) for n, p in uppers.items()
            }
            after, history, _ = window({**state, **moved, **below}, history, x)
            return {n: after[n] for n in xs}, history

        return measure_round(step, ({n: state[n] for n in xs}, history), uppers)

    upper = plan.graph.layers[layer][0]
    return choose_levels(loops, upper, len(phase.rounds), measure)


def _join_rounds(metrics: Metrics, counts: dict[str, int]) -> Metrics:
    """Join the axes of rounds and steps where a round has several steps."""
    return {
        key: x.reshape(-1, *x.shape[2:]) if counts[key.split("/")[0]] > 1 else x
        for key, x in metrics.items()
    }
