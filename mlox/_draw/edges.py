"""The edges of a picture: their curves, and the places of their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from mlox._draw.layout import Point
from mlox._draw.rows import Link

LANE = 6.0  # from the middle of a link with two edges to each of them
ARROW = 7.0  # the length of an arrow
HALF = 9.5  # half the width of a label
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


class Edge(NamedTuple):
    """An edge as it is drawn: curves from the lower up to the upper."""

    kind: str
    link: Link
    curves: tuple[Curve, ...]

    @property
    def name(self) -> str:
        """The edge in words."""
        upper, lower = self.link
        ends = (upper, lower) if self.kind == "u2l" else (lower, upper)
        return f"{self.kind}: {ends[0]} → {ends[1]}"


def make_edges(link: Link, kinds: Sequence[str], route: Sequence[Point]) -> list[Edge]:
    """Return the edges of a link, side by side: u2l on the left, l2u on the right."""
    shifts = {"u2l": -LANE, "l2u": LANE} if len(kinds) > 1 else {kinds[0]: 0.0}
    (x, y), *inner, (x_end, y_end) = route  # straight where the arrows are
    route = [(x, y - ARROW), *inner, (x_end, y_end + ARROW)]
    return [Edge(k, link, _curves(route, shift)) for k, shift in shifts.items()]


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
        side = (HALF + 4.0) * (1.0 if edge.kind == "l2u" else -1.0)
        sites = ((c[i][0] + side, c[i][1]) for c in curves for i in SITES)
        inside = (p for p in sites if left < p[0] - HALF < right - 2 * HALF)
        found = next((point for point in inside if _is_free(point, taken)), None)
        if found is None:
            return []
        x, y = found
        for point in ((x - HALF, y - 5), found, (x + HALF, y + 5)):
            taken.setdefault(_cell(point), []).append(point)
        labels.append(found)
    return labels


def _cell(point: Point) -> tuple[int, int]:
    """Return the cell of a grid as coarse as a label is large."""
    return int(point[0] // HALF), int(point[1] // 5)


def _is_free(place: Point, taken: Taken) -> bool:
    x, y = place
    column, row = _cell(place)
    near = ((column + i, row + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
    points = (point for cell in near for point in taken.get(cell, ()))
    return not any(abs(a - x) <= HALF and abs(b - y) <= 5 for a, b in points)
