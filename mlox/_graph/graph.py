"""The graph of problems: edges, schedule and best-response paths; names only."""

from __future__ import annotations

import graphlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Edges = tuple[tuple[str, str], ...]

# The schedule is static, so that no counter runs inside a compiled step. A problem
# without lowers steps at every tick, another one when all its lowers have done their
# `unroll_steps`. So the period of a problem, in ticks, is
#
#     T(p) = max over the lowers c of p of unroll_steps(c) T(c).
#
# A *layer* is a set of problems that step together: same period, same depth. The
# *window* of a layer is one period: a number of *rounds*, each a window of the layer
# below, and then one step of each of its problems. One *cycle* is the window of the
# highest layer.


@dataclass(frozen=True)
class Graph:
    """A checked graph of problems; hashable, compared by value.

    Attributes:
        names: The problems, in the order in which they were given.
        u2l: Edges (upper, lower): the lower's loss reads the upper, and the upper's
            gradient flows through the lower's answer.
        l2u: Edges (lower, upper): the upper's loss reads the lower's answer.
        unroll_steps: Steps of each problem per step of its uppers, in order of names.
        plain: Pairs (reader, read): the reader's loss sees the other one's parameters
            as constants. They have no part in periods, layers or responses.
    """

    names: tuple[str, ...]
    u2l: Edges
    l2u: Edges
    unroll_steps: tuple[int, ...]
    plain: Edges = ()

    def reads(self, name: str) -> tuple[str, ...]:
        """List all that the loss of `name` may read: neighbours and constants."""
        return self.neighbours(name) + self.constants(name)

    def neighbours(self, name: str) -> tuple[str, ...]:
        """List the problems that the loss of `name` may read along an edge."""
        return tuple(dict.fromkeys(self.uppers(name) + self.lowers(name)))

    def constants(self, name: str) -> tuple[str, ...]:
        """List the problems that the loss of `name` reads as constants."""
        return self._constants[name]

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
    def _constants(self) -> Mapping[str, tuple[str, ...]]:
        return {n: tuple(b for a, b in self.plain if a == n) for n in self.names}

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The problems from the lowest to the highest: by period, then by depth."""
        return tuple(name for layer in self.layers for name in layer)

    @cached_property
    def rank(self) -> Mapping[str, int]:
        """The place of each problem in the order."""
        return {name: i for i, name in enumerate(self.order)}

    @cached_property
    def below(self) -> Mapping[str, frozenset[str]]:
        """The problems from which each problem is reached along l2u edges."""
        found: dict[str, frozenset[str]] = {}
        for name in bottom_up(self.names, self.l2u):
            lowers = self.lowers(name)
            found[name] = frozenset(lowers).union(*(found[c] for c in lowers))
        return found

    @cached_property
    def depth(self) -> Mapping[str, int]:
        """The longest chain of l2u edges below each problem."""
        found: dict[str, int] = {}
        for name in bottom_up(self.names, self.l2u):
            found[name] = max((found[c] + 1 for c in self.lowers(name)), default=0)
        return found

    @cached_property
    def period(self) -> Mapping[str, int]:
        """The ticks T between two steps of each problem."""
        steps = dict(zip(self.names, self.unroll_steps, strict=True))
        found: dict[str, int] = {}
        for name in bottom_up(self.names, self.l2u):
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

    def names_below(self, layer: int) -> tuple[str, ...]:
        """List the problems of the layers below a layer."""
        return tuple(n for names in self.layers[:layer] for n in names)

    def steps_in_window(self, layer: int, name: str) -> int:
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
        (name, ..., lower, name).
        """
        # A ladder of d diamonds has 2^d paths: the engine sums over edges instead.
        led = {name: frozenset[str]() for name in self.names}
        for upper, lower in self.u2l:
            led[upper] |= {lower}
        return {
            name: [
                (name, *middle, name)
                for lower in sorted(led[name], key=self.names.index)
                for middle in self._walks_down(name, lower)
            ]
            for name in self.names
        }

    def _walks_down(self, upper: str, lower: str) -> list[tuple[str, ...]]:
        walks = [(lower,)] if lower in self.lowers(upper) else []
        for child in self.lowers(upper):
            if lower in self.below[child]:
                walks += [(child, *walk) for walk in self._walks_down(child, lower)]
        return walks


def bottom_up(names: Sequence[str], l2u: Edges) -> tuple[str, ...]:
    """Order the problems so that each comes after its lowers."""
    lowers = {name: [c for c, p in l2u if p == name] for name in names}
    return tuple(graphlib.TopologicalSorter(lowers).static_order())
