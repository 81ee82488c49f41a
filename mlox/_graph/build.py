"""Build a graph of problems from its edges, and validate both."""

from __future__ import annotations

import graphlib
import itertools
from collections.abc import Mapping, Sequence

from mlox._graph.graph import Graph, bottom_up


def build_graph(
    names: Sequence[str],
    u2l: Mapping[str, Sequence[str]],
    l2u: Mapping[str, Sequence[str]],
    unroll_steps: Mapping[str, int],
    reads: Mapping[str, Sequence[str]] | None = None,
) -> Graph:
    """Return a graph; raise ValueError if its names, edges or periods are not valid.

    u2l maps uppers to the lowers that read them, l2u lowers to the uppers that read
    their answers, `unroll_steps` every problem to its steps per upper step, and `reads`
    problems to those that they read as constants.
    """
    _check_names(names)
    graph = Graph(
        names=tuple(names),
        u2l=_edges("u2l", u2l, names),
        l2u=_edges("l2u", l2u, names),
        unroll_steps=tuple(unroll_steps[name] for name in names),
        plain=_edges("reads", reads or {}, names),
    )
    _check_plain(graph)
    _check_acyclic(graph)
    _check_ways_back(graph)
    _check_periods(graph)
    return graph


def _edges(kind: str, given: Mapping[str, Sequence[str]], names: Sequence[str]):
    edges: list[tuple[str, str]] = []
    for start, ends in given.items():
        if isinstance(ends, str):
            raise ValueError(
                f"{kind}[{start!r}] is the string {ends!r}; expected a list of "
                f"problems. Write {kind}={{{start!r}: [{ends!r}]}}."
            )
        for end in ends:
            edge = f"{kind} edge {start!r} -> {end!r}"
            if kind == "reads":
                edge = f"reads={{{start!r}: [{end!r}]}}"
            for name in (start, end):
                if name not in names:
                    raise ValueError(
                        f"{edge} names an unknown problem "
                        f"{name!r}; the engine's problems are {sorted(names)}. "
                        "Correct the name, or add the problem to the list."
                    )
            if start == end:
                raise ValueError(
                    f"{edge} leads from a problem to itself. "
                    "Drop it: a loss gets its own params as an argument."
                )
            if (start, end) in edges:
                raise ValueError(f"{edge} is given twice. Drop one.")
            edges.append((start, end))
    return tuple(edges)


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise ValueError("Engine got no problems; expected at least one Problem.")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(
            f"Problems share the name {twice[0]!r}; names must differ, since edges, "
            "batches and metrics use them as keys. Rename one of them."
        )


def _check_plain(graph: Graph) -> None:
    for reader, read in graph.plain:
        for kind, edges in (("u2l", graph.u2l), ("l2u", graph.l2u)):
            if (read, reader) in edges:
                raise ValueError(
                    f"reads={{{reader!r}: [{read!r}]}}: the loss of {reader!r} already "
                    f"reads {read!r} along {kind}={{{read!r}: [{reader!r}]}}, with its "
                    f"derivative. Drop it from reads, or, if {read!r} is meant to be "
                    f"a constant for {reader!r}, from {kind}."
                )


def _check_acyclic(graph: Graph) -> None:
    try:
        bottom_up(graph.names, graph.l2u)
    except graphlib.CycleError as error:
        cycle = " -> ".join(error.args[1])
        raise ValueError(
            f"l2u has a cycle: {cycle}. A problem's answer must not depend on itself "
            "through the uppers that read it: drop one of these l2u edges (an upper "
            "is read by its lower along u2l)."
        ) from error


def _check_ways_back(graph: Graph) -> None:
    for upper, lower in graph.u2l:
        if lower not in graph.below[upper]:
            raise ValueError(
                f"u2l edge {upper!r} -> {lower!r} has no way back: no chain of l2u "
                f"edges leads from {lower!r} to {upper!r}, so {upper!r} would never "
                f"see the answer of {lower!r}. Add l2u={{{lower!r}: [{upper!r}]}}, "
                "or the l2u edges of the problems between them."
            )


def _check_periods(graph: Graph) -> None:
    periods = sorted(set(graph.period.values()))
    for short, long in itertools.pairwise(periods):
        if long % short:
            first, second = (_who_has(graph, period) for period in (short, long))
            raise ValueError(
                f"unroll_steps do not divide: {first[0]!r} steps every {short} ticks "
                f"(unroll_steps={first[2]} of {first[1]!r}) and {second[0]!r} every "
                f"{long} (unroll_steps={second[2]} of {second[1]!r}). Each period "
                "must be a multiple of the shorter ones: change one of the two."
            )


def _who_has(graph: Graph, period: int) -> tuple[str, str, int]:
    """Find a problem with this period, and the lower whose unroll_steps set it."""
    steps = dict(zip(graph.names, graph.unroll_steps, strict=True))
    name = next(name for name in graph.names if graph.period[name] == period)
    slowest = max(
        graph.lowers(name), key=lambda c: steps[c] * graph.period[c], default=name
    )
    return name, slowest, steps[slowest]
