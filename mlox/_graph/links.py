"""What reads must carry, so that the edges of a graph mean something."""

from __future__ import annotations

import enum
from typing import NamedTuple

from mlox._graph.dependencies import Plan
from mlox._graph.graph import Graph


class Carries(enum.Enum):
    """What a read must carry.

    Attributes:
        SLOPE: dC_r/dtheta_n of the reader r with respect to what it reads, n.
        CROSS: d^2 C_r / dtheta_r dtheta_n, by which the answer of r responds to n.
        VALUE: No derivative: n is a constant for r.
    """

    SLOPE = enum.auto()
    CROSS = enum.auto()
    VALUE = enum.auto()


class Kind(enum.Enum):
    """What declares a read: nothing for a problem's own parameters."""

    U2L = "u2l"
    L2U = "l2u"
    READS = "reads"
    OWN = "own"


class Link(NamedTuple):
    """A read from which something is expected.

    Attributes:
        reader: The problem whose loss reads.
        read: The problem that it reads; the reader itself for its own parameters.
        carries: What is needed.
        kind: What declares it.
        answers: The problems whose answers respond along this read.
        declares_level: Whether the edge has a use without the read: it puts a problem
            below another one, to which its response comes back by other reads.
    """

    reader: str
    read: str
    carries: Carries
    kind: Kind
    answers: tuple[str, ...]
    declares_level: bool = False


def find_links(plan: Plan) -> tuple[Link, ...]:
    """List the reads from which something is expected.

    A derivative: u2l edges; the l2u edges by which a problem reads an answer that
    responds to it, or that are the only way back of some u2l edge; and the parameters
    of an answer in its own cost, which is not stationary anywhere without them. A value
    alone: what is read as a constant.
    """
    graph = plan.graph
    links = [Link(c, p, Carries.CROSS, Kind.U2L, (c,)) for p, c in graph.u2l]
    for c, p in graph.l2u:
        needed = _is_only_way_back(plan, (c, p))
        if c in plan.movers[p]:
            level = needed and _comes_back_otherwise(plan, (c, p))
            links.append(Link(p, c, Carries.SLOPE, Kind.L2U, (c,), level))
        elif needed:
            links.append(Link(p, c, Carries.CROSS, Kind.L2U, (p, c)))
    for name in graph.order:
        # A problem with movers may reach its own parameters through these alone.
        through_movers = plan.movers[name] and name in plan.totals | plan.unrolled
        if name in plan.responsive and not through_movers:
            links.append(Link(name, name, Carries.SLOPE, Kind.OWN, (name,)))
    links += [Link(a, b, Carries.VALUE, Kind.READS, (b,)) for a, b in graph.plain]
    return tuple(links)


def _is_only_way_back(plan: Plan, edge: tuple[str, str]) -> bool:
    """Return whether some u2l edge has no way back without an l2u edge."""
    graph = plan.graph
    lower, upper = edge
    return any(
        not _reaches(graph, edge, x, k)
        for x in (lower, *graph.below[lower])
        for k in graph.uppers(x)
        if k == upper or upper in graph.below[k]
    )


def _comes_back_otherwise(plan: Plan, edge: tuple[str, str]) -> bool:
    """Return whether a lower acts on an upper through what the upper reads besides.

    As in t over p over c, where p weighs the loss of c, and t reads c alone.
    """
    lower, upper = edge
    moved = {lower}
    while more := {
        n
        for n in plan.movers[upper] - moved
        if moved.intersection(plan.graph.neighbours(n))
    }:
        moved |= more
    return bool((moved - {lower}).intersection(plan.graph.lowers(upper)))


def _reaches(graph: Graph, without: tuple[str, str], start: str, end: str) -> bool:
    """Return whether an l2u way leads from a problem to another without an edge."""
    seen, pending = {end}, [end]
    while pending:
        p = pending.pop()
        more = {c for c in graph.lowers(p) if c not in seen and (c, p) != without}
        seen |= more
        pending += more
    return start in seen
