"""Place the boxes and the edges of a graph, in whatever they are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mlox._draw.edges import Arrow, Edge, make_edges
from mlox._draw.layout import Layout, lay_out
from mlox._draw.levels import split_depths
from mlox._draw.rows import Link


class Scene(NamedTuple):
    """Boxes and edges in their places; y points down."""

    layout: Layout
    edges: Sequence[Edge]


def make_scene(
    depth: Mapping[str, int],
    sizes: Mapping[str, tuple[float, float]],
    u2l: Sequence[tuple[str, str]],
    l2u: Sequence[tuple[str, str]],
    reads: Sequence[tuple[str, str]] = (),
) -> Scene:
    """Return a graph in its places: uppers above lowers.

    Args:
        depth: {name: depth}; an upper is deeper than its lowers.
        sizes: {name: (width, height)} of its box.
        u2l: Edges (upper, lower).
        l2u: Edges (lower, upper).
        reads: Pairs (reader, read).
    """
    levels = split_depths(depth, reads)
    arrows: dict[Link, list[Arrow]] = {}
    for upper, lower in u2l:
        arrows.setdefault((upper, lower), []).append(Arrow("u2l", up=False))
    for lower, upper in l2u:
        arrows.setdefault((upper, lower), []).append(Arrow("l2u", up=True))
    for reader, read in reads:
        up = levels[reader] > levels[read]
        link = (reader, read) if up else (read, reader)
        arrows.setdefault(link, []).append(Arrow("reads", up))
    layout = lay_out(levels, list(arrows), sizes)
    edges = [
        edge
        for link, route in layout.routes.items()
        for edge in make_edges(link, arrows[link], route)
    ]
    return Scene(layout, edges)
