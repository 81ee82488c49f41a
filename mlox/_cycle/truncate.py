"""Truncation: answers that are differentiated through their last steps only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from mlox._graph.dependencies import Plan
from mlox._utils.types import State
from mlox.methods import Iterative

# With `last_steps=K` the derivative of an answer begins K steps before the end of the
# window (Shaban et al. 2019): its state is a constant there. If y_t = Phi(y_{t-1}, x),
#
#     dy_T/dx = sum_{t > T-K} dPhi/dy(y_{T-1}) ... dPhi/dy(y_t) dPhi/dx(y_{t-1}),
#
# the last K terms of the whole sum. Answers of one window may begin at different
# rounds, so the scan over the rounds falls into phases.


class Phase(NamedTuple):
    """Rounds between two cuts.

    Attributes:
        rounds: The rounds.
        cut: The answers whose derivative begins with the first round.
        constant: Whether no answer is differentiated through these rounds.
    """

    rounds: range
    cut: Sequence[str]
    constant: bool


def split_phases(
    plan: Plan, layer: int, state: State, length: int, last_apart: bool = False
) -> list[Phase]:
    """Split the rounds of a window where derivatives of unrolled answers begin.

    With `last_apart` the last round is a phase of its own.
    """
    cuts = dict(_find_cuts(plan, layer, state, length))
    edges = sorted({0, length - last_apart, length, *cuts.values()})
    first = min(cuts.values(), default=0)
    return [
        Phase(
            range(start, stop),
            [u for u, cut in cuts.items() if cut == start > 0],
            stop <= first,
        )
        for start, stop in itertools.pairwise(edges)
    ]


def cut_derivatives(state: State, phase: Phase) -> State:
    """Return the state with which a phase begins: the answers of its cut, constant."""
    return {**state, **{u: jax.lax.stop_gradient(state[u]) for u in phase.cut}}


def _find_cuts(
    plan: Plan, layer: int, state: State, length: int
) -> Iterator[tuple[str, int]]:
    """Yield the round in which the derivative of each unrolled answer begins."""
    for u in plan.unrolled_through(layer):
        if u not in state:
            continue
        method: Any = state[u].method
        here = plan.differentiated_at[u] == layer and isinstance(method, Iterative)
        steps = method.last_steps if here else None
        per_round = plan.steps_per_round(u, layer)
        yield u, 0 if steps is None else max(0, length - steps // per_round)
