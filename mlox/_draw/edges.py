"""The edges of a picture: their curves, and the places of their labels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from mlox._draw.layout import Point
from mlox._draw.rows import Link

LANE = 6.0  # from the middle of a link with two edges to each of them
ARROW = 7.0  # the length of an arrow
HALF = 9.5  # half the width of a label of three letters
SAMPLES = 32  # of each curve
# Of a label: in the middle, if there is room.
SITES = sorted(range(3, SAMPLES - 2), key=lambda i: abs(i - SAMPLES // 2))

Taken: TypeAlias = dict[tuple[int, int], list[Point]]
"""Points where something is, by the cells of a grid."""


class Curve(NamedTuple):
    """A curve across a gap: a cubic with vertical ends, and its middle height."""

    x0: float
    y0: float
    middle: float
    x1: float
    y1: float

    def sample(self) -> list[Point]:
        """Return points along the curve."""
        return [
            (
                self.x0 + (self.x1 - self.x0) * (3 - 2 * t) * t**2,
                self.y0 * (1 - t) ** 3 + 3 * self.middle * t * (1 - t) + self.y1 * t**3,
            )
            for t in (i / SAMPLES for i in range(SAMPLES + 1))
        ]


class Arrow(NamedTuple):
    """The kind of an edge, and whether it points up."""

    kind: str
    up: bool


class Edge(NamedTuple):
    """An edge as it is drawn: curves from the lower up to the upper."""

    arrow: Arrow
    link: Link
    curves: tuple[Curve, ...]

    @property
    def name(self) -> str:
        """The edge in words, in the order in which it is declared."""
        kind, up = self.arrow
        start, end = self.link[::-1] if up else self.link
        shown = f"{end} ← {start}" if kind == "reads" else f"{start} → {end}"
        return f"{kind}: {shown}"

    @property
    def half(self) -> float:
        """Half the width of its label."""
        return HALF * len(self.arrow.kind) / 3


def make_edges(
    link: Link, arrows: Sequence[Arrow], route: Sequence[Point]
) -> list[Edge]:
    """Return the edges of a link, side by side: down on the left, up on the right."""
    shifts = {a: LANE if a.up else -LANE for a in sorted(arrows, key=lambda a: a.up)}
    if len(shifts) == 1:
        shifts = dict.fromkeys(shifts, 0.0)
    (x, y), *inner, (x_end, y_end) = route  # straight where the arrows are
    route = [(x, y - ARROW), *inner, (x_end, y_end + ARROW)]
    return [Edge(a, link, _curves(route, shift)) for a, shift in shifts.items()]


def _curves(route: Sequence[Point], shift: float) -> tuple[Curve, ...]:
    curves: list[Curve] = []
    for (x0, y0), (x1, y1) in zip(route[::2], route[1::2], strict=True):
        # Up as well as aside, so that two edges stay apart where they are steep, too.
        lift = shift * max(-1.0, min(1.0, (x1 - x0) / 40.0))
        curves.append(Curve(x0 + shift, y0, (y0 + y1) / 2 + lift, x1 + shift, y1))
    return tuple(curves)


def place_labels(edges: Sequence[Edge], left: float, right: float) -> list[Point]:
    """Find a place beside each edge for its label; none if not all of them have room.

    Args:
        edges: The edges.
        left: The left end of the room.
        right: Its right end.

    Returns:
        The centre of the label of each edge, or nothing.
    """
    samples = [[curve.sample() for curve in edge.curves] for edge in edges]
    taken: Taken = {}
    for point in (point for curves in samples for curve in curves for point in curve):
        taken.setdefault(_cell(point), []).append(point)
    labels: list[Point] = []
    for edge, curves in zip(edges, samples, strict=True):
        half = edge.half
        side = (half + 4.0) * (1.0 if edge.arrow.up else -1.0)
        sites = ((c[i][0] + side, c[i][1]) for c in curves for i in SITES)
        inside = (p for p in sites if left < p[0] - half < right - 2 * half)
        found = next((point for point in inside if _is_free(point, half, taken)), None)
        if found is None:
            return []
        x, y = found
        for point in ((x - half, y - 5), found, (x + half, y + 5)):
            taken.setdefault(_cell(point), []).append(point)
        labels.append(found)
    return labels


def _cell(point: Point) -> tuple[int, int]:
    """Return the cell of a grid as coarse as a short label is large."""
    return int(point[0] // HALF), int(point[1] // 5)


def _is_free(place: Point, half: float, taken: Taken) -> bool:
    x, y = place
    (left, top), (right, bottom) = _cell((x - half, y - 5)), _cell((x + half, y + 5))
    near = itertools.product(range(left, right + 1), range(top, bottom + 1))
    points = (point for cell in near for point in taken.get(cell, ()))
    return not any(abs(a - x) <= half and abs(b - y) <= 5 for a, b in points)
