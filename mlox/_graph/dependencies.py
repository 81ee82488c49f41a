"""Which answers respond when a problem moves, and in which blocks they are solved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from mlox._graph.graph import Graph
from mlox._graph.scope import find_held, find_rerun, find_scope, group_pulls
from mlox.solvers import System

# An answer (the *best response* of the literature) is *unrolled* if its inner loop is
# differentiated, else *implicit*: differentiated by the implicit function theorem.
#
# B(k), the *movers* of k, are the problems below k whose answer responds when the
# parameters theta_k move.
#
# A problem is *total* if it answers to its total objective, in which its own movers
# respond, else it answers to the partial gradient of its cost. A *tower* is a total
# problem with implicit movers: the multipliers of these movers are unknowns of every
# problem above, beside the parameters.


@dataclass(frozen=True)
class Player:
    """One player of a Nash game.

    Attributes:
        name: The player n. Its Lagrangian L_n has a slope for each of its unknowns.
        names: n and, if n is a tower, its implicit movers: L_n is differentiated with
            respect to their parameters.
        towers: The towers among the movers, whose multipliers are unknowns of L_n, too.
    """

    name: str
    names: tuple[str, ...]
    towers: tuple[str, ...]

    @property
    def is_tower(self) -> bool:
        """Whether the player has multipliers of its own."""
        return len(self.names) > 1


@dataclass(frozen=True)
class Block:
    """Answers that must be solved for together, as one linear system.

    Attributes:
        names: Its problems, from the highest to the lowest.
        towers: Those of them whose multipliers are unknowns of the block.
        tops: Those of them that are movers of no other. With one top the residual is
            the gradient of the top's Lagrangian. Two tops, siblings that lead a lower
            which they share, play a Nash game.
        players: All of its problems as players of that game; empty with one top.
        system: The class of its matrix.
    """

    names: tuple[str, ...]
    towers: tuple[str, ...]
    tops: tuple[str, ...]
    players: tuple[Player, ...]
    system: System


@dataclass(frozen=True)
class Response:
    """How the answers below one problem k respond to it.

    Attributes:
        implicit: The implicit movers of k, from the lowest to the highest.
        unrolled: The unrolled movers that respond through the window of k itself.
        replayed: Total movers through whose last windows other unrolled movers respond,
            from the highest to the lowest.
        blocks: The implicit movers in blocks, each after those that it depends on.
    """

    implicit: tuple[str, ...]
    unrolled: tuple[str, ...]
    replayed: tuple[str, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Plan:
    """The responses of every problem of a graph; hashable, compared by value.

    Attributes:
        graph: The graph.
        unrolled: The problems whose answers are unrolled.
        can_be_total: The problems whose method can answer to a total objective.
        total: Whether such a problem does so: the coupling of the engine.
        stateful: The unrolled problems whose mutable state is read by another problem:
            then it is a part of the answer. Known when the losses are traced.
        ruled: The responsive problems whose loss holds a `jax.custom_vjp`. Known when
            the losses are traced.
    """

    graph: Graph
    unrolled: frozenset[str]
    can_be_total: frozenset[str]
    total: bool = True
    stateful: frozenset[str] = frozenset()
    ruled: frozenset[str] = frozenset()

    @cached_property
    def movers(self) -> Mapping[str, frozenset[str]]:
        """B(k) for each problem k: the lowers that it points to, closed over reads."""
        # The closure matters. With u2l {t: [c]} and l2u {c: [p], p: [t]}, the answer of
        # p moves with t although no u2l edge leads from t to p: p reads theta_c. Taking
        # only what t points to leaves the hypergradient of t 93 % off.
        return {name: self._find_movers(name) for name in self.graph.names}

    @cached_property
    def responsive(self) -> frozenset[str]:
        """The problems whose answer responds to some problem above."""
        return frozenset().union(*self.movers.values())

    @cached_property
    def implicit(self) -> frozenset[str]:
        """The responsive problems that are not unrolled."""
        return self.responsive - self.unrolled

    @cached_property
    def totals(self) -> frozenset[str]:
        """The problems that answer to a total objective, since they have movers."""
        return frozenset(n for n in self.can_be_total if self.total and self.movers[n])

    @cached_property
    def towers(self) -> frozenset[str]:
        """The total problems that have implicit movers, hence multipliers."""
        return frozenset(n for n in self.totals if self.movers[n] & self.implicit)

    @cached_property
    def responses(self) -> Mapping[str, Response]:
        """The response of the answers below each problem."""
        return {name: self._find_response(name) for name in self.graph.names}

    @cached_property
    def attached(self) -> Mapping[str, tuple[Block, ...]]:
        """Every implicit answer below each problem, in blocks."""
        return {
            name: self._find_blocks(below & self.implicit)
            for name, below in self.graph.below.items()
        }

    @cached_property
    def kept_constants(self) -> Mapping[str, tuple[str, ...]]:
        """What implicit answers read as constants and, by the evaluation, may step."""
        graph = self.graph
        found: dict[str, tuple[str, ...]] = {}
        for name in {reader for reader, _ in graph.plain} & self.implicit:
            above = [graph.layer_of[k] for k in graph.names if name in graph.below[k]]
            moved = (b for b in graph.constants(name) if graph.layer_of[b] < max(above))
            found[name] = tuple(moved)
        return found

    @cached_property
    def replayed(self) -> frozenset[str]:
        """The problems whose last window is run again inside a residual above."""
        return frozenset().union(*(r.replayed for r in self.responses.values()))

    @cached_property
    def rerun(self) -> Mapping[str, tuple[str, ...]]:
        """The problems that run when a replayed problem's window runs again."""
        return {n: self._in_order(find_rerun(self.graph, n)) for n in self.replayed}

    @cached_property
    def held(self) -> Mapping[str, tuple[str, ...]]:
        """What these problems read as constants from above the window."""
        return {
            n: self._in_order(find_held(self.graph, inside))
            for n, inside in self.rerun.items()
        }

    @cached_property
    def scope(self) -> Mapping[str, tuple[str, ...]]:
        """The problems on which the gradient of each problem depends."""
        return {
            name: self._in_order(
                find_scope(
                    self.graph,
                    name,
                    (m for n in below & self.replayed for m in self.rerun[n]),
                )
            )
            for name, below in self.graph.below.items()
        }

    @cached_property
    def pulled_together(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """For each layer, its problems in groups that share one pull-back."""
        readers: dict[str, list[str]] = {}
        groups: list[tuple[tuple[str, ...], ...]] = []
        for layer in self.graph.layers:
            answers = {n: self.responses[n].unrolled for n in layer}
            pulled = [n for n in layer if answers[n]]
            rest = ((n,) for n in layer if not answers[n])
            groups.append((*group_pulls(pulled, answers, readers), *rest))
            for n in layer:
                for m in self.scope[n]:
                    readers.setdefault(m, []).append(n)
        return tuple(groups)

    def unrolled_through(self, layer: int) -> tuple[str, ...]:
        """List the unrolled answers that respond through the window of a layer."""
        uppers = self.graph.layers[layer]
        return tuple(
            dict.fromkeys(u for n in uppers for u in self.responses[n].unrolled)
        )

    @cached_property
    def differentiated_at(self) -> Mapping[str, int]:
        """The lowest layer through whose window each unrolled answer responds."""
        found: dict[str, int] = {}
        for layer in range(len(self.graph.layers)):
            for answer in self.unrolled_through(layer):
                found.setdefault(answer, layer)
        return found

    @cached_property
    def conflicts(self) -> tuple[tuple[str, str, str, str], ...]:
        """List (k, u, c, j) where an unrolled u would miss its response to j.

        k moves both u and the implicit j, and the answer of c, a lower of u, responds
        to j, which is not below u. So u responds to j through c; but its steps hold j
        fixed.
        """
        return tuple(
            (k, u, c, j)
            for k, response in self.responses.items()
            for u in response.unrolled
            for c in self.graph.order
            if c in self.graph.below[u] & self.implicit
            for j in response.implicit
            if j in self._responds_to(c) - self.graph.below[u] - {u}
        )

    def steps_per_round(self, name: str, layer: int) -> int:
        """Return the steps of a problem in one round of a layer's window."""
        return self.graph.layer_period[layer - 1] // self.graph.period[name]

    def reads_of(self, block: Block) -> frozenset[str]:
        """Return the problems with which the residual of a block may change."""
        # The residual of a total problem contains the residuals of its movers.
        members = set(block.names)
        for name in self.totals.intersection(block.names):
            members |= self.movers[name]
        return frozenset().union(*(self.graph.neighbours(name) for name in members))

    def _find_movers(self, name: str) -> frozenset[str]:
        below = self.graph.below[name]
        return _close(
            {lower for upper, lower in self.graph.u2l if upper == name},
            lambda moving: {j for j in below if self._responds_to(j) & moving},
        )

    def _responds_to(self, name: str) -> frozenset[str]:
        """Return the problems that the answer of `name` responds to when they move."""
        # Lowers move the answer since its loss reads them. An upper p moves it if p
        # differentiates through it: p is unrolled, or answers to its total objective.
        # A direct p holds its lowers fixed by definition (Betty's rule): then their
        # response to p is in no gradient, and p does not count.
        uppers = {
            p
            for p in self.graph.uppers(name)
            if (self.total and p in self.can_be_total) or p in self.unrolled
        }
        return frozenset(uppers | set(self.graph.lowers(name)))

    def _find_unrolled(self, name: str) -> tuple[str, ...]:
        """Return the unrolled movers that respond through the window of `name`."""
        movers = self.movers[name]
        unrolled = movers & self.unrolled
        # Below a total mover they respond inside its residual, which runs them again.
        for inner in movers & self.implicit & self.totals:
            unrolled -= self.movers[inner]
        return self._in_order(unrolled)

    def _find_response(self, name: str) -> Response:
        implicit = self._in_order(self.movers[name] & self.implicit)
        return Response(
            implicit=implicit,
            unrolled=self._find_unrolled(name),
            # From the highest to the lowest: where windows overlap, the lowest one
            # runs last, and its answers are those that count.
            replayed=tuple(
                n
                for n in reversed(implicit)
                if n in self.totals and self._find_unrolled(n)
            ),
            blocks=self._find_blocks(implicit),
        )

    @cached_property
    def _depends_on(self) -> Mapping[str, frozenset[str]]:
        """The problems that each residual depends on, also through its tower."""
        graph = self.graph
        depends = {n: self._responds_to(n) for n in graph.names}
        for name in self.totals:
            inside = self.movers[name] | {name}
            depends[name] = inside.union(*(graph.neighbours(n) for n in inside))
        # What reads an unrolled answer depends on the problem whose window moves it.
        windows = {n: frozenset(self._find_unrolled(n)) for n in self.totals}
        return {
            name: read.union(n for n, moved in windows.items() if moved & read)
            for name, read in depends.items()
        }

    def _find_blocks(self, members: Iterable[str]) -> tuple[Block, ...]:
        """Return the blocks of some answers, each after those that it depends on."""
        # The strongly connected components of what the residuals depend on.
        # GMRES could solve the whole set at once, which is block triangular. Conjugate
        # gradients assume a symmetric matrix and would be silently wrong.
        pending = self._in_order(members)
        inside = frozenset(pending)
        depends = {n: self._depends_on[n] & inside for n in pending}
        reach = {
            n: _close({n}, lambda seen: set().union(*(depends[m] for m in seen)))
            for n in pending
        }
        blocks: list[Block] = []
        while pending:
            # The block that reaches least depends on nothing that is still pending.
            first = min(pending, key=lambda n: len(reach[n].intersection(pending)))
            names = tuple(n for n in reversed(pending) if reach[n] == reach[first])
            blocks.append(self._make_block(names))
            pending = tuple(n for n in pending if n not in names)
        return tuple(blocks)

    def _make_block(self, names: tuple[str, ...]) -> Block:
        led = {m for n in self.totals.intersection(names) for m in self.movers[n]}
        tops = tuple(n for n in names if n not in led)
        towers = tuple(n for n in names if n in self.towers)
        if len(tops) > 1:
            players = tuple(map(self._make_player, names))
            return Block(names, towers, tops, players, System.GENERAL)
        # The rows of a tower are the gradient of one Lagrangian: symmetric, but a
        # saddle point in (parameters, multipliers), hence indefinite.
        tower = self.towers.intersection(tops)
        system = System.SYMMETRIC if tower else System.DEFINITE
        return Block(names, towers, tops, (), system)

    def _make_player(self, name: str) -> Player:
        if name not in self.towers:
            return Player(name, (name,), ())
        below = self._in_order(self.movers[name] & self.implicit)
        return Player(name, (name, *below), tuple(n for n in below if n in self.towers))

    def _in_order(self, names: Iterable[str]) -> tuple[str, ...]:
        """Sort problems from the lowest to the highest."""
        return tuple(sorted(frozenset(names), key=self.graph.rank.__getitem__))


def _close(
    start: Iterable[str], grow: Callable[[set[str]], set[str]]
) -> frozenset[str]:
    """Add to a set what `grow` returns for it, until that is nothing new."""
    seen = set(start)
    while more := grow(seen) - seen:
        seen |= more
    return frozenset(seen)
