"""The rows of a layered graph, and the order of each row in which few links cross."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

LONGEST_ROW = 8
SWEEPS = 24

Link: TypeAlias = tuple[str, str]  # upper, lower
Node: TypeAlias = str | tuple[Link, int]  # a box, or a link where it passes a row


class Rows(NamedTuple):
    """Nodes in rows from the lowest to the highest, and their links to other rows."""

    rows: list[list[Node]]
    below: Mapping[Node, list[Node]]
    above: Mapping[Node, list[Node]]
    chains: Mapping[Link, list[Node]]


def make_rows(
    names: Sequence[str], depth: Mapping[str, int], links: Sequence[Link]
) -> Rows:
    """Make rows of boxes by depth, and the points where links pass them."""
    rows: list[list[Node]] = []
    for level in sorted(set(depth.values())):
        boxes: list[Node] = [name for name in names if depth[name] == level]
        number = math.ceil(len(boxes) / LONGEST_ROW)
        length = math.ceil(len(boxes) / number)
        rows += [boxes[i * length :][:length] for i in reversed(range(number))]
    row_of = {node: i for i, row in enumerate(rows) for node in row}
    chains: dict[Link, list[Node]] = {}
    for link in links:
        upper, lower = link
        passed = range(row_of[lower] + 1, row_of[upper])
        chains[link] = [lower, *((link, i) for i in passed), upper]
        for i in passed:
            rows[i].append((link, i))
    above: dict[Node, list[Node]] = {node: [] for row in rows for node in row}
    below: dict[Node, list[Node]] = {node: [] for row in rows for node in row}
    for chain in chains.values():
        for low, high in itertools.pairwise(chain):
            above[low].append(high)
            below[high].append(low)
    return Rows(rows, below, above, chains)


def order_rows(graph: Rows) -> Rows:
    """Order each row by the mean place of its neighbours, until few links cross."""
    rows = best = graph.rows
    fewest = _crossings(best, graph.above)
    for sweep in range(SWEEPS):
        beside = graph.above if sweep % 2 else graph.below
        place: dict[Node, float] = {}
        ordered: list[list[Node]] = []
        for row in rows[::-1] if sweep % 2 else rows:
            means = {
                node: sum(place[n] for n in beside[node]) / len(beside[node])
                if beside[node]
                else i / len(row)
                for i, node in enumerate(row)
            }
            row = sorted(row, key=means.__getitem__)
            place |= {node: i / len(row) for i, node in enumerate(row)}
            ordered.append(row)
        rows = ordered[::-1] if sweep % 2 else ordered
        if (crossings := _crossings(rows, graph.above)) < fewest:
            best, fewest = rows, crossings
    place = {node: float(i) for row in best for i, node in enumerate(row)}
    return graph._replace(
        rows=best,
        above={n: sorted(ns, key=place.__getitem__) for n, ns in graph.above.items()},
        below={n: sorted(ns, key=place.__getitem__) for n, ns in graph.below.items()},
    )


def _crossings(rows: Sequence[Sequence[Node]], above: Mapping[Node, list[Node]]) -> int:
    """Count the pairs of links that cross between two rows."""
    place = {node: i for row in rows for i, node in enumerate(row)}
    count = 0
    for row in rows:
        ends = sorted((place[low], place[high]) for low in row for high in above[low])
        passed: list[int] = []
        for _, high in ends:
            count += len(passed) - bisect.bisect_right(passed, high)
            bisect.insort(passed, high)
    return count
