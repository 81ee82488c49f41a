"""Place the boxes of a layered graph, and the routes of its links between them.

Sugiyama, Tagawa and Toda, Methods for Visual Understanding of Hierarchical System
Structures, 1981: rows by depth; a point in each row that a link passes; the order of a
row by the mean position of its neighbours; then positions by least squares.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from mlox._draw.rows import Link, Node, Rows, make_rows, order_rows

PORT = 44.0  # between the links of one box
PASSAGE = 26.0  # the width of a link that passes a row
SPACE = 24.0  # between neighbours in a row
GAP = 80.0  # between rows; wider if links go far to the side
SHELF = 1200.0  # components stand side by side up to this width
SWEEPS = 24

Point: TypeAlias = tuple[float, float]


class Box(NamedTuple):
    """A box: its centre and its size."""

    x: float
    y: float
    width: float
    height: float


class Layout(NamedTuple):
    """Where all is.

    Attributes:
        width: The width of the whole.
        height: The height of the whole.
        boxes: {name: box}.
        routes: {link: points from the lower's top to the upper's bottom}; from each
            even point to the next one a link crosses a gap between two rows, from each
            odd one it goes straight through a row.
    """

    width: float
    height: float
    boxes: Mapping[str, Box]
    routes: Mapping[Link, Sequence[Point]]


def lay_out(
    depth: Mapping[str, int],
    links: Sequence[Link],
    sizes: Mapping[str, tuple[float, float]],
) -> Layout:
    """Place the boxes of a graph, uppers above lowers.

    Args:
        depth: {name: depth}; an upper is deeper than its lowers.
        links: Pairs (upper, lower).
        sizes: {name: (width, height)}; a box with many links becomes wider.

    Returns:
        The layout, whose upper left corner is (0, 0).
    """
    parts = [
        _lay_out_component(names, {n: depth[n] for n in names}, own, sizes)
        for names in _components(list(depth), links)
        for own in [[link for link in links if link[0] in names]]
    ]
    boxes: dict[str, Box] = {}
    routes: dict[Link, Sequence[Point]] = {}
    left = top = width = bottom = 0.0
    for part in parts:
        if left and left + part.width > SHELF:
            left, top = 0.0, bottom + GAP / 2
        for name, box in part.boxes.items():
            boxes[name] = box._replace(x=box.x + left, y=box.y + top)
        for link, points in part.routes.items():
            routes[link] = [(x + left, y + top) for x, y in points]
        width, bottom = max(width, left + part.width), max(bottom, top + part.height)
        left += part.width + 2 * SPACE
    return Layout(width, bottom, boxes, routes)


def _components(names: Sequence[str], links: Iterable[Link]) -> list[list[str]]:
    """Split the boxes into those that are linked, the largest part first."""
    group = {name: i for i, name in enumerate(names)}
    for upper, lower in links:
        merged = sorted((group[upper], group[lower]))
        group = {n: merged[0] if g == merged[1] else g for n, g in group.items()}
    parts = [[n for n in names if group[n] == g] for g in dict.fromkeys(group.values())]
    return sorted(parts, key=len, reverse=True)


def _lay_out_component(
    names: Sequence[str],
    depth: Mapping[str, int],
    links: Sequence[Link],
    sizes: Mapping[str, tuple[float, float]],
) -> Layout:
    graph = order_rows(make_rows(names, depth, links))
    ports = _ports(graph)
    widths: dict[Node, float] = {
        node: max(
            sizes[node][0],
            PORT * max(len(graph.above[node]), len(graph.below[node])),
        )
        if isinstance(node, str)
        else PASSAGE
        for row in graph.rows
        for node in row
    }
    xs = _positions(graph, ports, widths)
    left = min(xs[node] - widths[node] / 2 for node in xs)
    xs = {node: x - left for node, x in xs.items()}
    heights = [
        max(sizes[node][1] for node in row if isinstance(node, str))
        for row in graph.rows
    ]
    spans = _spans(graph, ports, xs, heights)
    boxes = {
        name: Box(xs[name], (spans[i][0] + spans[i][1]) / 2, widths[name], heights[i])
        for i, row in enumerate(graph.rows)
        for name in row
        if isinstance(name, str)
    }
    row_of = {node: i for i, row in enumerate(graph.rows) for node in row}
    routes = {
        link: _route(chain, xs, ports, [spans[row_of[node]] for node in chain])
        for link, chain in graph.chains.items()
    }
    width = max(xs[node] + widths[node] / 2 for node in xs)
    return Layout(width, spans[0][1], boxes, routes)


def _ports(graph: Rows) -> dict[tuple[Node, Node], float]:
    """Return where, from the centre of a node, its link to another one begins."""
    return {
        (node, other): (i - (len(others) - 1) / 2) * PORT
        for beside in (graph.above, graph.below)
        for node, others in beside.items()
        for i, other in enumerate(others)
    }


def _positions(
    graph: Rows,
    ports: Mapping[tuple[Node, Node], float],
    widths: Mapping[Node, float],
) -> dict[Node, float]:
    """Place nodes where the sum of the squares of the links' slopes is least."""
    xs: dict[Node, float] = {}
    for row in graph.rows:
        even = [1.0] * len(row)
        xs |= zip(row, _separate([0.0] * len(row), even, row, widths), strict=True)
    for sweep in range(SWEEPS):
        for row in graph.rows[::-1] if sweep % 2 else graph.rows:
            wanted: list[float] = []
            weights: list[float] = []
            for node in row:
                others = [*graph.above[node], *graph.below[node]]
                # Straight passages read best.
                pulls = [
                    (4.0 if isinstance(n, tuple) and isinstance(node, tuple) else 1.0)
                    for n in others
                ]
                sites = [xs[n] + ports[n, node] - ports[node, n] for n in others]
                weights.append(sum(pulls) or 1.0)
                total = sum(w * x for w, x in zip(pulls, sites, strict=True))
                wanted.append(total / weights[-1] if others else xs[node])
            xs |= zip(row, _separate(wanted, weights, row, widths), strict=True)
    return xs


def _separate(
    wanted: Sequence[float],
    weights: Sequence[float],
    row: Sequence[Node],
    widths: Mapping[Node, float],
) -> list[float]:
    """Return the positions nearest to those wanted at which the nodes do not touch.

    Less the room that the nodes before take, positions must not fall from one node to
    the next: least squares of that kind is solved by pooling neighbours that do.
    """
    room = [0.0]
    for left, right in itertools.pairwise(row):
        room.append(room[-1] + (widths[left] + widths[right]) / 2 + SPACE)
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for x, weight, taken in zip(wanted, weights, room, strict=True):
        pool = (x - taken, weight, 1)
        while pools and pools[-1][0] >= pool[0]:
            mean, heavy, length = pools.pop()
            total = heavy + pool[1]
            mean = (mean * heavy + pool[0] * pool[1]) / total
            pool = (mean, total, length + pool[2])
        pools.append(pool)
    means = [mean for mean, _, length in pools for _ in range(length)]
    return [mean + taken for mean, taken in zip(means, room, strict=True)]


def _spans(
    graph: Rows,
    ports: Mapping[tuple[Node, Node], float],
    xs: Mapping[Node, float],
    heights: Sequence[float],
) -> list[tuple[float, float]]:
    """Return the top and the bottom of each row, the highest one at 0."""
    spans: list[tuple[float, float]] = []
    top = 0.0
    for row, height in zip(graph.rows[::-1], heights[::-1], strict=True):
        spans.append((top, top + height))
        aside = [
            abs(xs[n] + ports[n, node] - xs[node] - ports[node, n])
            for node in row
            for n in graph.below[node]
        ]
        top += height + GAP + min(0.12 * max(aside, default=0.0), GAP)
    return spans[::-1]


def _route(
    chain: Sequence[Node],
    xs: Mapping[Node, float],
    ports: Mapping[tuple[Node, Node], float],
    spans: Sequence[tuple[float, float]],
) -> list[Point]:
    """Return the points of a link from its lower's top to its upper's bottom."""
    lower, upper = chain[0], chain[-1]
    points = [(xs[lower] + ports[lower, chain[1]], spans[0][0])]
    for node, (top, bottom) in zip(chain[1:-1], spans[1:-1], strict=True):
        points += [(xs[node], bottom), (xs[node], top)]
    return [*points, (xs[upper] + ports[upper, chain[-2]], spans[-1][1])]
