"""Edges that carry nothing: found where a step is traced, and told in words."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Set
from typing import NamedTuple

import jax

from mlox._cycle.cycle import Cycle
from mlox._cycle.dead_reads import Fault, find_fault
from mlox._graph.links import Carries, Kind, Link, find_links
from mlox._hypergradient.watch import Read, watch_reads
from mlox._utils.types import Batches, State
from mlox._utils.warn import warn
from mlox.methods import Implicit, Loop

# Whoever declares an edge expects that something flows along it. A loss that does not
# read its upper, a `stop_gradient` too many, or edges the wrong way round leave a
# program that runs to its end with a hypergradient that is zero, or lacks a part.

FOUND = {
    Fault.NOT_READ: "does not read the parameters of {read!r}",
    Fault.DERIVATIVE_CUT: (
        "reads the parameters of {read!r}, but has no derivative with respect to them "
        "(stop_gradient, rounding, integers, argmax)"
    ),
    Fault.ADDITIVE: (
        "depends on the parameters of {read!r} by an added term alone, which does not "
        "change its slope"
    ),
    Fault.STEERS_ONLY: (
        "does not read the parameters of {read!r}, and its optimizer, which does by "
        "hyperparams=, has no derivative with respect to them"
    ),
    Fault.EDGE_REVERSED: "does not depend on the parameters of {reader!r} itself",
}
REMEDIES = {
    Fault.NOT_READ: "Read ctx.{read}.params in it, or drop {declared}.",
    Fault.DERIVATIVE_CUT: (
        "Drop what cuts the derivative. If a constant is meant, pass "
        "method=mlox.Detached() to {answer!r}."
    ),
    Fault.ADDITIVE: (
        "Let them act on what {reader!r} minimizes, e.g. as a weight. A term of "
        "{read!r} alone belongs into the loss of {read!r}."
    ),
    Fault.STEERS_ONLY: (
        "Drop what cuts the derivative in hyperparams (stop_gradient, rounding, "
        "integers). If a constant is meant, pass method=mlox.Detached() to {answer!r}."
    ),
    Fault.EDGE_REVERSED: (
        "Perhaps upper and lower are exchanged: u2l={{upper: [lower]}} leads to the "
        "problem that is solved, l2u={{lower: [upper]}} to the one whose loss judges "
        "its answer."
    ),
}


class DeadEdge(NamedTuple):
    """A read that carries nothing, though something declares it.

    Attributes:
        fault: Why.
        link: The read.
    """

    fault: Fault
    link: Link

    @property
    def text(self) -> str:
        """What was found, and what it means."""
        found = FOUND[self.fault].format(**self._names)
        return f"the loss of {self.link.reader!r} {found}{self._consequence}."

    @property
    def remedy(self) -> str:
        """What to do."""
        return REMEDIES[self.fault].format(**self._names)

    @property
    def _names(self) -> dict[str, str]:
        reader, read, answer = self.link.reader, self.link.read, self.link.answers[0]
        declared = "it from reads" if self.link.kind is Kind.READS else "the edge"
        return {"reader": reader, "read": read, "answer": answer, "declared": declared}

    @property
    def _consequence(self) -> str:
        reader, read, carries, kind = self.link[:4]
        if kind is Kind.OWN:
            return ", so it has no answer that the problems above could differentiate"
        if kind is Kind.READS:
            return f", although reads={{{reader!r}: [{read!r}]}} is declared"
        edge = f"{kind.value}={{{read!r}: [{reader!r}]}}"
        if kind is Kind.U2L:
            lacks = f"the hypergradient of {read!r} lacks the response of {reader!r}"
        elif carries is Carries.SLOPE:
            lacks = f"the hypergradient of {reader!r} lacks the response of {read!r}"
        else:
            lacks = f"the answer of {reader!r} does not respond to {read!r}"
        return f", although {edge} is declared: {lacks}"


def find_dead_edges(
    cycle: Cycle, state: State, batches: Batches
) -> tuple[DeadEdge, ...]:
    """Return the edges that carry nothing in a cycle, which is traced, not run."""
    links = find_links(cycle.plan)
    with watch_reads(map(_read_of, links)) as carried:
        jax.eval_shape(cycle.step, state, batches)
    # A difference of two costs pulls back what is added to both, too: it cancels in
    # numbers, but not in structure. So the programs of such costs are looked at.
    differences = {
        _read_of(link)
        for link in links
        if link.carries is Carries.CROSS
        and not isinstance(state[link.answers[0]].method, Implicit | Loop)
    }
    return _judge(cycle, links, carried - differences, state, batches)


@contextlib.contextmanager
def warn_of_dead_edges(
    cycle: Cycle, names: Iterable[str], state: State, batches: Batches
) -> Generator[None]:
    """Warn of edges between some problems that carry nothing in what is traced here."""
    inside = frozenset(names)
    links = [n for n in find_links(cycle.plan) if {n.reader, n.read} <= inside]
    with watch_reads(map(_read_of, links)) as carried:
        yield
    for edge in _judge(cycle, links, carried, state, batches):
        warn(f"{edge.text} {edge.remedy}")


def _judge(
    cycle: Cycle,
    links: Iterable[Link],
    carried: Set[Read],
    state: State,
    batches: Batches,
) -> tuple[DeadEdge, ...]:
    # Only what no cotangent has reached is worth a program of its cost.
    silent = [link for link in links if _read_of(link) not in carried]
    faults = [(find_fault(cycle, link, state, batches), link) for link in silent]
    dead = [DeadEdge(fault, link) for fault, link in faults if fault is not None]
    # Nothing else is to be said of a problem that has no answer.
    void = {e.link.reader for e in dead if e.fault is Fault.EDGE_REVERSED}
    return tuple(
        e
        for e in dead
        if e.fault is Fault.EDGE_REVERSED or not void.intersection(e.link.answers)
    )


def _read_of(link: Link) -> Read:
    return link.reader, link.read
