"""Roll-back: a window as a look-ahead, restored after the problems above step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlox._cycle.batches import last_steps
from mlox._cycle.history import History
from mlox._graph.graph import Graph
from mlox._problem.problem import Problem
from mlox._utils.types import Batches, Metrics, State

# With y_T(x) the answer after the window from y_0, an upper x and one lower y make
#
#     x' = x - a d/dx C_x(x, y_T(x)),    y' = y_0 - b dC_y/dy (y_0, x'):
#
# the upper looks ahead, and the lower makes a single step, under the new upper (as in
# architecture search: Liu, Simonyan and Yang, DARTS, 2019, algorithm 1).

Round = Callable[[State, History, Batches], tuple[dict[str, Problem], History, Metrics]]


def roll_back(
    graph: Graph,
    layer: int,
    run_round: Round,
    before: State,
    after: dict[str, Problem],
    history: History,
    batches: Batches,
    stepped: Sequence[jax.Array],
) -> tuple[dict[str, Problem], History]:
    """Restore the problems below a layer, and run one round under the updated layer.

    The round uses the last batches of the window. `stepped` has, for each problem of
    the layer, whether it has made a step.
    """
    steppers = (n for n in graph.layers[layer] if n in batches)
    names = frozenset().union(*(graph.below[n] for n in steppers))
    if not names:
        return after, history
    # Loss scales are not restored: an overflow in the look-ahead was an overflow.
    restored = {
        n: dataclasses.replace(before[n], loss_scale=after[n].loss_scale) for n in names
    }
    inside = (n for n in graph.names_below(layer) if n in batches)
    steps = {n: graph.steps_in_window(layer - 1, n) for n in inside}
    last = {
        n: last_steps(graph, layer, n, batches, count) for n, count in steps.items()
    }
    state, kept, _ = run_round({**after, **restored}, history, last)

    def below(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
        return {n: (new if n in names else old)[n] for n in old}

    found = (
        below(state, after),
        History(*(below(new, old) for new, old in zip(kept, history, strict=True))),
    )
    # If no problem of the layer has stepped, since all wait, there was no look-ahead.
    if any(before[n].warmup_steps for n in names):
        found = optax.tree.where(jnp.stack(stepped).any(), found, (after, history))
    return found
