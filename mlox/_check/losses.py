"""Probes of losses: their derivatives against differences of their own values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from mlox._check.reference import Reference
from mlox._check.setting import Arrival
from mlox._check.vectors import as_tree, as_vector, scale_of, shift
from mlox._graph.links import find_links
from mlox._hypergradient.cost import cost
from mlox._utils.types import PyTree

STEP = 1e-4
FAR, FURTHER = 0.1, 3.0
BEND = 0.1


class Slopes(NamedTuple):
    """The costs of some problems and their derivatives.

    Attributes:
        values: The cost of each problem.
        gradients: Its gradient, for each problem that it may read and itself.
    """

    values: dict[str, jax.Array]
    gradients: dict[str, dict[str, PyTree]]


@dataclass(frozen=True, eq=False)
class Costs:
    """The costs of the upper and of all answers, as functions of their parameters."""

    reference: Reference

    @property
    def names(self) -> tuple[str, ...]:
        """The problems whose costs are probed."""
        return (self.reference.setting.name, *self.reference.setting.movers)

    @cached_property
    def needed(self) -> frozenset[tuple[str, str]]:
        """The pairs (reader, read) that must carry a derivative."""
        links = find_links(self.reference.plan)
        return frozenset(
            (link.reader, link.read) for link in links if not link.declares_level
        )

    def reads(self, name: str) -> tuple[str, ...]:
        """Return a problem, and those of the others with which its loss changes."""
        graph = self.reference.plan.graph
        return (name, *(n for n in self.names if n in graph.neighbours(name)))

    def value(
        self, name: str, at: Arrival, params: Mapping[str, PyTree], weights: Any
    ) -> jax.Array:
        """Return the cost of one problem."""
        setting = self.reference.setting
        point = self.reference.weigh(setting.point(at, params), at, weights)
        return cost(self.reference.plan, name, point)[0]

    def values(
        self, at: Arrival, params: Mapping[str, PyTree], weights: Any
    ) -> dict[str, jax.Array]:
        """Return the costs."""
        return {n: self.value(n, at, params, weights) for n in self.names}

    def slopes(self, at: Arrival, params: Mapping[str, PyTree], weights: Any) -> Slopes:
        """Return the costs and their gradients."""
        values, gradients = {}, {}
        for m in self.names:

            def along(part: Mapping[str, PyTree], m: str = m) -> jax.Array:
                return self.value(m, at, {**params, **part}, weights)

            part = {n: params[n] for n in self.reads(m)}
            values[m], gradients[m] = jax.value_and_grad(along)(part)
        return Slopes(values, gradients)

    def curved(
        self,
        at: Arrival,
        params: Mapping[str, PyTree],
        weights: Any,
        direction: Mapping[str, PyTree],
    ) -> dict[str, PyTree]:
        """Return the derivative of each answer's own gradient along a direction."""

        def own(params: Mapping[str, PyTree]) -> dict[str, PyTree]:
            gradients = self.slopes(at, params, weights).gradients
            return {m: gradients[m][m] for m in self.names[1:]}

        return jax.jvp(own, (dict(params),), (dict(direction),))[1]


@dataclass(frozen=True)
class Edge:
    """How the cost of one problem depends on the parameters of another one.

    Attributes:
        cost: The problem whose cost it is.
        by: The problem whose parameters move.
        above: Whether the cost's own answer responds to it: an edge u2l.
        needed: Whether the cost must depend on it, for the edges to mean something.
        change: How far the cost changes where they move a good way, relative to it.
        computed: Its slope along a direction, by JAX.
        measured: The same by central differences.
        curvature: What a second difference says about the error of `measured`.
        slope_change: How far the own gradient changes where they move a good way,
            relative to its norm.
        slope_computed: The derivative of the own gradient along the direction, by JAX;
            empty for the upper, where nothing depends on it.
        slope_measured: The same by central differences.
        bend: How far the slopes of the own gradient to both sides differ, relative to
            their sum: about 0 where it is smooth.
        rounding: The rounding error of `measured`.
        slope_rounding: The rounding error of `slope_measured`.
        blind: The paths of the leaves whose gradient is exactly zero.
    """

    cost: str
    by: str
    above: bool
    needed: bool
    change: float
    computed: float
    measured: float
    curvature: float
    slope_change: float
    slope_computed: np.ndarray
    slope_measured: np.ndarray
    bend: float
    rounding: float
    slope_rounding: float
    blind: tuple[str, ...]

    @property
    def own(self) -> bool:
        """Whether the problem depends on its own parameters here."""
        return self.cost == self.by

    @property
    def unread(self) -> bool:
        """Whether nothing changes where the parameters move a good way."""
        return self.change < 1e-12 and self.slope_change < 1e-12

    @property
    def silent(self) -> bool:
        """Whether JAX sees no dependence that a hypergradient could use."""
        if self.above:
            return not np.any(self.slope_computed)
        return self.computed == 0

    @property
    def is_wrong(self) -> bool:
        """Whether a derivative by JAX differs from differences."""
        return self.first_wrong or self.second_wrong

    @property
    def first_wrong(self) -> bool:
        """Whether the slope of the cost is not that of its values."""
        off = abs(self.computed - self.measured)
        return off > 0.02 * abs(self.measured) + 0.02 * self.curvature + self.rounding

    @property
    def has_kink(self) -> bool:
        """Whether a derivative is wrong as there are two, one to each side."""
        off = abs(self.computed - self.measured)
        return (self.first_wrong and self.curvature > off) or (
            self.second_wrong and self.bend > BEND
        )

    @property
    def second_wrong(self) -> bool:
        """Whether the slope of the own gradient is not that of its values."""
        off = np.linalg.norm(self.slope_computed - self.slope_measured)
        size = np.linalg.norm(self.slope_measured)
        return bool(off > 0.02 * size + self.slope_rounding)


Evaluate = Callable[[Mapping[str, PyTree]], Slopes]
Curve = Callable[[Mapping[str, PyTree], Mapping[str, PyTree]], dict[str, PyTree]]


def probe_edges(
    costs: Costs,
    slopes: Evaluate,
    curved: Curve,
    params: Mapping[str, PyTree],
    seed: int,
) -> tuple[Edge, ...]:
    """Return how each cost depends on each of the parameters that it may read."""
    rng = np.random.default_rng(seed)
    center = slopes(params)
    edges: list[Edge] = []
    for by in costs.names:
        size = as_vector(params[by]).size
        unit = rng.normal(size=size)
        direction = as_tree(unit / np.linalg.norm(unit), params[by])
        length = scale_of(params[by])
        ends = [
            slopes({**params, by: shift(params[by], sign * h * length, direction)})
            for h in (STEP, FAR, FURTHER)
            for sign in (1.0, -1.0)
        ]
        still = {n: jax.tree.map(np.zeros_like, x) for n, x in params.items()}
        tangents = curved(params, {**still, by: direction})
        edges += [
            _make_edge(
                costs, m, by, center, ends, STEP * length, direction, tangents.get(m)
            )
            for m in costs.names
            if by in costs.reads(m)
        ]
    return tuple(edges)


def _make_edge(
    costs: Costs,
    m: str,
    by: str,
    center: Slopes,
    ends: list[Slopes],
    step: float,
    direction: PyTree,
    tangent: PyTree,
) -> Edge:
    values = [float(end.values[m]) for end in ends]
    own = [as_vector(end.gradients[m][m]) for end in ends]
    value, slope = float(center.values[m]), as_vector(center.gradients[m][m])
    gradient = center.gradients[m][by]
    far = max(abs(v - value) for v in values[2:])
    turned = max(float(np.linalg.norm(g - slope)) for g in own[2:])
    sizes = [float(np.linalg.norm(g)) for g in own]
    near, most = max(sizes[:2]), max(sizes)
    return Edge(
        cost=m,
        by=by,
        above=(by, m) in costs.reference.plan.graph.u2l,
        needed=(m, by) in costs.needed,
        change=far / max(abs(value), abs(values[2]), 1e-300),
        computed=float(as_vector(gradient) @ as_vector(direction)),
        measured=(values[0] - values[1]) / (2 * step),
        curvature=abs(values[0] - 2 * value + values[1]) / step,
        slope_change=turned / max(most, 1e-300),
        slope_computed=as_vector(tangent),
        slope_measured=as_vector(None if tangent is None else own[0] - own[1])
        / (2 * step),
        bend=float(np.linalg.norm(own[0] - 2 * slope + own[1]))
        / max(float(np.linalg.norm(own[0] - own[1])), 1e-300),
        rounding=1e-13 * max(map(abs, values[:2])) / step,
        slope_rounding=1e-13 * near / step,
        blind=tuple(
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
            if not np.any(np.asarray(leaf))
        ),
    )


def find_jump(function: Callable[[float], np.ndarray], span: float) -> float:
    """Return the largest jump of a function on an interval, relative to its range.

    The interval over which it changes most is halved again and again, each time keeping
    the half with the larger change: a smooth function changes ever less.

    Args:
        function: t -> a vector.
        span: The interval is [-span, span].

    Example:
        >>> find_jump(lambda t: np.array([t]), 1.0) < 1e-4
        True
        >>> find_jump(lambda t: np.array([np.sign(t - 0.3)]), 1.0)
        1.0
    """
    ends = np.linspace(-span, span, 17)
    values = [np.asarray(function(float(t))) for t in ends]
    changes = [float(np.linalg.norm(b - a)) for a, b in itertools.pairwise(values)]
    spread = max(float(np.linalg.norm(v - values[0])) for v in values)
    if not np.isfinite(spread) or spread == 0:
        return 0.0
    first = int(np.argmax(changes))
    low, high = float(ends[first]), float(ends[first + 1])
    at_low, at_high = values[first], values[first + 1]
    for _ in range(24):
        middle = (low + high) / 2
        value = np.asarray(function(middle))
        if np.linalg.norm(value - at_low) >= np.linalg.norm(at_high - value):
            high, at_high = middle, value
        else:
            low, at_low = middle, value
    return float(np.linalg.norm(at_high - at_low)) / spread
