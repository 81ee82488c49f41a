"""Which answers move when a problem moves, and in which blocks they are solved.

The mathematics of the engine that needs names only. Terms:

- an answer is *unrolled* if its inner loop itself is differentiated, else *implicit*;
- a problem is *coupled* if it answers to its total objective, in which its own lowers
  respond (it is then the top of a *tower*), else to the partial gradient of its cost;
- a *mover* of k is a problem below k whose answer moves when the parameters of k do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from mlox._graph.graph import Graph
from mlox.solvers import System


@dataclass(frozen=True)
class Block:
    """Answers that must be solved for together, as one linear system.

    Attributes:
        names: Its problems, from the highest to the lowest.
        tops: Those of them that are in no other's tower. With one top the residual is
            the gradient of its Lagrangian, hence symmetric; two tops play a Nash game
            over what they share.
        system: The class of its matrix.
    """

    names: tuple[str, ...]
    tops: tuple[str, ...]
    system: System


@dataclass(frozen=True)
class Response:
    """How the answers below one problem respond to it.

    Attributes:
        implicit: Its implicit movers, from the lowest to the highest.
        own: Its unrolled movers that respond through its own window.
        owners: Coupled movers through whose windows other unrolled movers respond,
            the highest first, so that the lowest one has the last word.
        blocks: Its implicit movers in blocks, each after those that it depends on.
    """

    implicit: tuple[str, ...]
    own: tuple[str, ...]
    owners: tuple[str, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Plan:
    """The responses of every problem of a graph; hashable, compared by value.

    Attributes:
        graph: The graph.
        unrolled: The problems whose answers are unrolled.
        coupling: The problems whose method can answer to a total objective.
        total: Whether such a problem does so.
    """

    graph: Graph
    unrolled: frozenset[str]
    coupling: frozenset[str]
    total: bool = True

    @cached_property
    def movers(self) -> Mapping[str, frozenset[str]]:
        """The movers of each problem: those that it points to, closed over reads."""
        return {name: self._movers(name) for name in self.graph.names}

    @cached_property
    def moved(self) -> frozenset[str]:
        """The problems whose answer moves with some other problem."""
        return frozenset().union(*self.movers.values())

    @cached_property
    def coupled(self) -> frozenset[str]:
        """The problems that answer to a total objective, with movers of their own."""
        return frozenset(n for n in self.coupling if self.total and self.movers[n])

    @cached_property
    def towers(self) -> frozenset[str]:
        """The coupled problems whose multipliers are unknowns of those above."""
        return frozenset(
            n for n in self.graph.names if n in self.coupled and self._implicit(n)
        )

    @cached_property
    def responses(self) -> Mapping[str, Response]:
        """The response of the answers below each problem."""
        return {name: self._response(name) for name in self.graph.names}

    @cached_property
    def attached(self) -> Mapping[str, tuple[Block, ...]]:
        """Every moved implicit answer below each problem, in blocks."""
        return {
            name: self._blocks(below & self.moved - self.unrolled)
            for name, below in self.graph.below.items()
        }

    @cached_property
    def windowed(self) -> frozenset[str]:
        """The problems whose last window must be run again by those above."""
        owners = (set(r.owners) for r in self.responses.values())
        return frozenset().union(*owners)

    @cached_property
    def window_of(self) -> Mapping[str, int]:
        """The lowest layer in whose window each unrolled answer is differentiated."""
        found: dict[str, int] = {}
        for layer, names in enumerate(self.graph.layers):
            for answer in (u for n in names for u in self.responses[n].own):
                found.setdefault(answer, layer)
        return found

    @cached_property
    def clashes(self) -> tuple[tuple[str, str, str, str], ...]:
        """List (k, u, c, j): an unrolled u that would respond to an implicit j unseen.

        k moves both, and the answer of c, a lower of u, responds to j, which is not
        below u. So u responds to j through c; but its steps take j as fixed.
        """
        return tuple(
            (k, u, c, j)
            for k, response in self.responses.items()
            for u in response.own
            for c in self.graph.order
            if c in self.graph.below[u] & self.moved - self.unrolled
            for j in response.implicit
            if j in self._responds_to(c) - self.graph.below[u] - {u}
        )

    def steps_per_round(self, name: str, layer: int) -> int:
        """Count the steps of a problem in one round below a layer."""
        return self.graph.layer_period[layer - 1] // self.graph.period[name]

    def touched(self, block: Block) -> frozenset[str]:
        """List what the residuals of a block may read."""
        inside = set(block.names)
        for name in block.names:
            if name in self.coupled:
                inside |= self.movers[name]
        reads = (set(self.graph.reads(name)) for name in inside)
        return frozenset().union(*reads)

    def _movers(self, name: str) -> frozenset[str]:
        moving = {lower for upper, lower in self.graph.u2l if upper == name}
        return _closure(
            moving,
            lambda moving: {
                j for j in self.graph.below[name] if self._responds_to(j) & moving
            },
        )

    def _responds_to(self, name: str) -> frozenset[str]:
        """List the problems that the answer of `name` responds to when they move.

        An implicit upper that is not coupled takes its lowers as fixed, by
        definition, so that their response to it is not part of anybody's gradient.
        """
        uppers = {
            p
            for p in self.graph.uppers(name)
            if (self.total and p in self.coupling) or p in self.unrolled
        }
        return frozenset(uppers | set(self.graph.lowers(name)))

    def _implicit(self, name: str) -> tuple[str, ...]:
        movers = self.movers[name] - self.unrolled
        return tuple(n for n in self.graph.order if n in movers)

    def _own(self, name: str) -> tuple[str, ...]:
        unrolled = self.movers[name] & self.unrolled
        for tower in set(self._implicit(name)) & self.coupled:
            unrolled -= self.movers[tower]
        return tuple(n for n in self.graph.order if n in unrolled)

    def _response(self, name: str) -> Response:
        implicit = self._implicit(name)
        return Response(
            implicit=implicit,
            own=self._own(name),
            owners=tuple(
                n for n in reversed(implicit) if n in self.coupled and self._own(n)
            ),
            blocks=self._blocks(implicit),
        )

    @cached_property
    def _depends_on(self) -> Mapping[str, frozenset[str]]:
        """What each residual reads, through its tower if the problem has one.

        What reads an unrolled answer depends on the owner of its window.
        """
        graph = self.graph
        depends = {n: self._responds_to(n) for n in graph.names}
        for name in self.coupled:
            inside = self.movers[name] | {name}
            depends[name] = inside.union(*(graph.reads(n) for n in inside))
        windows = {n: frozenset(self._own(n)) for n in self.coupled}
        return {
            name: read.union(n for n, own in windows.items() if own & read)
            for name, read in depends.items()
        }

    def _blocks(self, members: Iterable[str]) -> tuple[Block, ...]:
        inside = frozenset(members)
        members = tuple(n for n in self.graph.order if n in inside)
        depends = {n: self._depends_on[n] & inside for n in members}
        reach = {
            n: _closure({n}, lambda seen: set().union(*(depends[m] for m in seen)))
            for n in members
        }
        blocks: list[Block] = []
        pending = list(members)
        while pending:
            # The block that reaches least depends on nothing that is still pending.
            first = min(pending, key=lambda n: len(reach[n] & set(pending)))
            names = tuple(n for n in reversed(pending) if reach[n] == reach[first])
            blocks.append(self._block(names))
            pending = [n for n in pending if n not in names]
        return tuple(blocks)

    def _block(self, names: tuple[str, ...]) -> Block:
        inner = {m for n in names if n in self.coupled for m in self.movers[n]}
        tops = tuple(n for n in names if n not in inner)
        if len(tops) > 1:
            return Block(names, tops, System.GENERAL)
        tower = self.towers.intersection(tops)
        return Block(names, tops, System.SYMMETRIC if tower else System.DEFINITE)


def _closure(
    start: Iterable[str], grow: Callable[[set[str]], set[str]]
) -> frozenset[str]:
    """Add what a set calls for until it calls for nothing more."""
    seen = set(start)
    while more := grow(seen) - seen:
        seen |= more
    return frozenset(seen)
