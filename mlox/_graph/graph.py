"""The graph of problems: edges, their checks, best-response paths and schedule.

Nothing here knows JAX: names and integers only.
"""

from __future__ import annotations

import graphlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Edges = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Graph:
    """A checked graph of problems; hashable, compared by value.

    Attributes:
        names: The problems, in the order in which they were given.
        u2l: Edges (upper, lower): the lower's loss reads the upper, and the upper's
            gradient flows through the lower's answer.
        l2u: Edges (lower, upper): the upper's loss reads the lower's answer.
        unroll_steps: Steps of each problem per step of its uppers, in order of names.
    """

    names: tuple[str, ...]
    u2l: Edges
    l2u: Edges
    unroll_steps: tuple[int, ...]

    def reads(self, name: str) -> tuple[str, ...]:
        """List the neighbours that the loss of `name` may read."""
        return tuple(dict.fromkeys(self.uppers(name) + self.lowers(name)))

    def uppers(self, name: str) -> tuple[str, ...]:
        """List the problems p with an edge p -> name in u2l."""
        return self._uppers[name]

    def lowers(self, name: str) -> tuple[str, ...]:
        """List the problems c with an edge c -> name in l2u."""
        return self._lowers[name]

    @cached_property
    def _uppers(self) -> Mapping[str, tuple[str, ...]]:
        return {n: tuple(p for p, c in self.u2l if c == n) for n in self.names}

    @cached_property
    def _lowers(self) -> Mapping[str, tuple[str, ...]]:
        return {n: tuple(c for c, p in self.l2u if p == n) for n in self.names}

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The problems from the lowest to the highest: by period, then by depth."""
        return tuple(name for layer in self.layers for name in layer)

    @cached_property
    def below(self) -> Mapping[str, frozenset[str]]:
        """The problems from which each problem is reached along l2u edges."""
        found: dict[str, frozenset[str]] = {}
        for name in _bottom_up(self.names, self.l2u):
            lowers = self.lowers(name)
            found[name] = frozenset(lowers).union(*(found[c] for c in lowers))
        return found

    @cached_property
    def depth(self) -> Mapping[str, int]:
        """The longest chain of l2u edges below each problem."""
        found: dict[str, int] = {}
        for name in _bottom_up(self.names, self.l2u):
            found[name] = max((found[c] + 1 for c in self.lowers(name)), default=0)
        return found

    @cached_property
    def period(self) -> Mapping[str, int]:
        """Ticks between two steps of each problem; a leaf steps at every tick.

        T(p) = max over the lowers c of p of unroll_steps(c) T(c).
        """
        steps = dict(zip(self.names, self.unroll_steps, strict=True))
        found: dict[str, int] = {}
        for name in _bottom_up(self.names, self.l2u):
            lowers = self.lowers(name)
            found[name] = max((steps[c] * found[c] for c in lowers), default=1)
        return found

    @cached_property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """The problems that step together, from the lowest layer to the highest."""
        keys = {name: (self.period[name], self.depth[name]) for name in self.names}
        return tuple(
            tuple(name for name in self.names if keys[name] == key)
            for key in sorted(set(keys.values()))
        )

    @cached_property
    def layer_of(self) -> Mapping[str, int]:
        """The index of each problem's layer."""
        return {name: i for i, layer in enumerate(self.layers) for name in layer}

    def beneath(self, layer: int) -> tuple[str, ...]:
        """List the problems of the layers below a layer."""
        return tuple(n for names in self.layers[:layer] for n in names)

    def count(self, layer: int, name: str) -> int:
        """Count the steps of a problem in a window of a layer."""
        return self.layer_period[layer] // self.period[name]

    @cached_property
    def inner_layer(self) -> Mapping[str, int]:
        """The layer whose window is the inner loop of a problem that has uppers."""
        layers: dict[str, int] = {}
        for lower, upper in self.l2u:
            layer = self.layer_of[upper]
            layers[lower] = min(layer, layers.get(lower, layer))
        return layers

    @cached_property
    def layer_period(self) -> tuple[int, ...]:
        """The period of each layer."""
        return tuple(self.period[layer[0]] for layer in self.layers)

    @cached_property
    def steps_per_cycle(self) -> Mapping[str, int]:
        """Steps of each problem in one cycle, the largest period."""
        cycle = max(self.period.values())
        return {name: cycle // self.period[name] for name in self.names}

    @cached_property
    def paths(self) -> Mapping[str, list[tuple[str, ...]]]:
        """The best-response paths of each problem, for people and tests.

        A path is one u2l edge down and l2u edges back up, written from the end:
        (name, ..., lower, name). Their number can be exponential in the depth; the
        engine never enumerates them.
        """
        return {
            name: [
                (name, *middle, name)
                for lower in self.names
                if (name, lower) in self.u2l
                for middle in self._ways_down(name, lower)
            ]
            for name in self.names
        }

    def _ways_down(self, upper: str, lower: str) -> list[tuple[str, ...]]:
        ways = [(lower,)] if lower in self.lowers(upper) else []
        for child in self.lowers(upper):
            if lower in self.below[child]:
                ways += [(child, *way) for way in self._ways_down(child, lower)]
        return ways


def build_graph(
    names: Sequence[str],
    u2l: Mapping[str, Sequence[str]],
    l2u: Mapping[str, Sequence[str]],
    unroll_steps: Mapping[str, int],
) -> Graph:
    """Check the edges and the schedule, and build the graph.

    Args:
        names: The problems.
        u2l: For each upper, the lowers that read it and answer to it.
        l2u: For each lower, the uppers that read its answer.
        unroll_steps: Steps of each problem per step of its uppers.

    Returns:
        The graph.

    Raises:
        ValueError: If a name is given twice, an edge names an unknown problem or is
            given twice, l2u has a cycle, a u2l edge has no way back, or the periods
            do not divide each other.
    """
    _check_names(names)
    graph = Graph(
        names=tuple(names),
        u2l=_edges("u2l", u2l, names),
        l2u=_edges("l2u", l2u, names),
        unroll_steps=tuple(unroll_steps[name] for name in names),
    )
    _check_acyclic(graph)
    _check_ways_back(graph)
    _check_periods(graph)
    return graph


def _bottom_up(names: Sequence[str], l2u: Edges) -> tuple[str, ...]:
    lowers = {name: [c for c, p in l2u if p == name] for name in names}
    return tuple(graphlib.TopologicalSorter(lowers).static_order())


def _edges(kind: str, given: Mapping[str, Sequence[str]], names: Sequence[str]):
    edges: list[tuple[str, str]] = []
    for start, ends in given.items():
        if isinstance(ends, str):
            raise ValueError(
                f"{kind}[{start!r}] is the string {ends!r}; expected a list of "
                f"problems. Write {kind}={{{start!r}: [{ends!r}]}}."
            )
        for end in ends:
            for name in (start, end):
                if name not in names:
                    raise ValueError(
                        f"{kind} edge {start!r} -> {end!r} names an unknown problem "
                        f"{name!r}; the engine's problems are {sorted(names)}. "
                        "Correct the name, or add the problem to the list."
                    )
            if start == end:
                raise ValueError(
                    f"{kind} edge {start!r} -> {end!r} leads from a problem to itself. "
                    "Drop it: a loss gets its own params as an argument."
                )
            if (start, end) in edges:
                raise ValueError(
                    f"{kind} edge {start!r} -> {end!r} is given twice. Drop one."
                )
            edges.append((start, end))
    return tuple(edges)


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise ValueError("Engine got no problems; expected at least one Problem.")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(
            f"Problems share the name {twice[0]!r}; names must differ, since edges, "
            "batches and metrics go by name. Rename one of them."
        )


def _check_acyclic(graph: Graph) -> None:
    try:
        _bottom_up(graph.names, graph.l2u)
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
