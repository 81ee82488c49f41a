"""The point at which the functions of a problem that are not losses are evaluated."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import jax

from mlox._graph.dependencies import Plan
from mlox._graph.graph import Graph
from mlox._hypergradient.point import EvaluationPoint, present_point
from mlox._problem.problem import Problem
from mlox._utils.types import State


class Stream(enum.IntEnum):
    """Streams of PRNG keys, beside the one from which steps fold their counts."""

    # No count of steps reaches them: an int32 counts to 2^31 - 1.

    RESET = 2**32 - 1
    SAMPLE = 2**32 - 2
    LOOP = 2**32 - 3
    DRAW = 2**32 - 4


def point_of_stream(
    graph: Graph,
    state: State,
    stream: Stream,
    inner_steps: Mapping[str, jax.Array] | None = None,
) -> EvaluationPoint:
    """Return the point of a state, with the keys of a stream at the present steps."""
    keys = {n: key_of_stream(problem, stream) for n, problem in state.items()}
    return present_point(graph, state, keys, inner_steps=inner_steps)


def seen_by(plan: Plan, name: str, state: State) -> State:
    """Return the problems that the functions of a problem see."""
    return {n: state[n] for n in (name, *plan.graph.reads(name))}


def key_of_stream(problem: Problem, stream: Stream) -> jax.Array | None:
    """Return the key of a stream at the present step of a problem, if it has keys."""
    if problem.rng is None:
        return None
    rng = jax.random.fold_in(problem.rng, int(stream))
    return jax.random.fold_in(rng, problem.step)
