"""The graph that a rewriting takes and returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mlox._engine.build import Edges, build_plan
from mlox._engine.validation import check_problems
from mlox._graph.dependencies import Plan
from mlox._problem.problem import Problem

NamedEdges = Mapping[str, tuple[str, ...]]


class Graph(NamedTuple):
    """A graph of problems: what `mlox.Engine` takes, in its order.

    `mlox.Engine(*graph)` builds the engine.

    Attributes:
        problems: The problems.
        u2l: Upper -> lowers that read it.
        l2u: Lower -> uppers that read its answer.
        reads: Problem -> those that its loss reads as constants.

    Example:
        >>> import jax.numpy as jnp, mlox.rewritings, optax
        >>> problem = mlox.Problem.create(
        ...     name="x", params=jnp.ones(()), tx=optax.sgd(0.5),
        ...     loss_fn=lambda params, batch, ctx: params**2)
        >>> mlox.Engine(*mlox.rewritings.Graph((problem,))).names
        ('x',)
    """

    problems: tuple[Problem, ...]
    u2l: NamedEdges | None = None
    l2u: NamedEdges | None = None
    reads: NamedEdges | None = None


def read_graph(
    problems: Sequence[Problem],
    u2l: Edges | None,
    l2u: Edges | None,
    reads: Edges | None,
) -> tuple[dict[str, Problem], Plan]:
    """Return the problems by name, and the plan of their graph.

    Raises:
        TypeError, ValueError: As `mlox.Engine`, if they make no graph.
    """
    check_problems(problems)
    plan = build_plan(problems, u2l, l2u, True, reads)
    return {problem.name: problem for problem in problems}, plan


def make_graph(
    problems: Iterable[Problem],
    u2l: Iterable[tuple[str, str]],
    l2u: Iterable[tuple[str, str]],
    reads: Iterable[tuple[str, str]],
) -> Graph:
    """Return a graph from its edges, pairs of names; reads are (reader, read)."""
    return Graph(tuple(problems), *map(_group, (u2l, l2u, reads)))


def _group(edges: Iterable[tuple[str, str]]) -> NamedEdges:
    """Return {start: ends} of pairs, each once.

    Example:
        >>> _group([("a", "b"), ("a", "c"), ("a", "b")])
        {'a': ('b', 'c')}
    """
    grouped: dict[str, tuple[str, ...]] = {}
    for start, end in dict.fromkeys(edges):
        grouped[start] = (*grouped.get(start, ()), end)
    return grouped
