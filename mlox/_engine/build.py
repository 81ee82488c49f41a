"""Build the plan of an engine from problems and edges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlox._graph.build import build_graph
from mlox._graph.dependencies import Plan
from mlox._problem.problem import Problem
from mlox.methods import Loop, reach
from mlox.solvers import System

Edges = Mapping[Any, Sequence[str | Problem]]


def build_plan(
    problems: Sequence[Problem],
    u2l: Edges | None,
    l2u: Edges | None,
    total: bool,
    reads: Edges | None = None,
) -> Plan:
    """Return the plan of problems and edges, which are given by names or problems.

    Raises:
        TypeError: If an edge is not a name or a problem.
        ValueError: If the graph is not valid, see `mlox._graph.build`.
    """
    graph = build_graph(
        [p.name for p in problems],
        _name_edges("u2l", u2l),
        _name_edges("l2u", l2u),
        {p.name: int(p.unroll_steps) for p in problems},
        _name_edges("reads", reads),
    )
    return Plan(
        graph=graph,
        unrolled=frozenset(p.name for p in problems if isinstance(p.method, Loop)),
        can_be_total=frozenset(
            p.name for p in problems if reach(p.method) > System.NONE
        ),
        total=total,
    )


def _name_edges(kind: str, edges: Edges | None) -> dict[str, Sequence[str]]:
    if edges is not None and not isinstance(edges, Mapping):
        raise TypeError(
            f"{kind} is {edges!r}; expected a dict from a problem to a list of "
            "problems."
        )
    named: dict[str, Sequence[str]] = {}
    for start, ends in (edges or {}).items():
        name = _name_of(kind, start)
        if name in named:
            raise ValueError(
                f"{kind} names {name!r} twice, as a string and as a Problem. Put its "
                "edges into one list."
            )
        if isinstance(ends, Problem) or not isinstance(ends, Iterable):
            raise TypeError(
                f"{kind}[{name!r}] is a {type(ends).__name__}; expected a list of "
                f"problems, e.g. {kind}={{{name!r}: ['another']}}."
            )
        named[name] = (
            ends if isinstance(ends, str) else [_name_of(kind, e) for e in ends]
        )
    return named


def _name_of(kind: str, node: Any) -> str:
    if isinstance(node, Problem):
        return node.name
    if not isinstance(node, str):
        raise TypeError(
            f"{kind} holds {node!r}; expected the name of a problem, or a Problem."
        )
    return node
