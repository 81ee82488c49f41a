"""Communication read from a compiled program: what is moved, and how often."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
WIDTHS = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_ARRAY = re.compile(r"(pred|bf16|[fsuc]\d+)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:to_apply|calls|condition|body|true_computation|"
    r"false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"%?([\w.\-]+) = s\d+\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"compare\(.*?%?([\w.\-]+)\), direction=LT")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")


class Collective(NamedTuple):
    """A collective operation of a program.

    Attributes:
        kind: One of `KINDS`.
        size: The bytes of its result on one device.
        times: How often it runs.
    """

    kind: str
    size: int
    times: int

    def sent(self, devices: int) -> float:
        """Return the bytes that a device sends, all times, as rings do it."""
        share = (devices - 1) / devices
        each = {
            "all-reduce": 2 * share * self.size,
            "all-gather": share * self.size,
            "reduce-scatter": (devices - 1) * self.size,
            "all-to-all": share * self.size,
            "collective-permute": self.size,
        }
        return each[self.kind] * self.times


def collectives(text: str) -> list[Collective]:
    """List the collectives of a program, those in loops with their trip counts.

    Args:
        text: The optimized program, `compiled.as_text()`.

    Returns:
        The collectives.

    Raises:
        ValueError: If a loop that holds one has no known trip count.
    """
    bodies, entry = _computations(text)
    times = _times(bodies, entry)
    return [
        Collective(kind, size, times[name])
        for name, lines in bodies.items()
        for kind, size in _found(lines)
        if times[name]
    ]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Split a program into its computations, and name the one that it starts with."""
    bodies: dict[str, list[str]] = {}
    entry, name = "", None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head and not line.startswith("HloModule"):
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif line.startswith("}"):
            name = None
        elif name is not None:
            bodies[name].append(line)
    return bodies, entry


def _times(bodies: Mapping[str, list[str]], entry: str) -> Counter[str]:
    """Count how often each computation runs."""
    times: Counter[str] = Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in bodies[name]:
            inside = _inside(line, bodies)
            for called, factor in inside:
                visit(called, count * factor)

    visit(entry, 1)
    return times


def _inside(line: str, bodies: Mapping[str, list[str]]) -> Iterator[tuple[str, int]]:
    """Yield what an instruction calls, and how often."""
    names = _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
        names += [name.strip().lstrip("%") for name in branches.split(",")]
    trips = _trips(line, bodies) if " while(" in line else 1
    for name in (name for name in names if name in bodies):
        if trips is not None:
            yield name, trips
        elif _communicates(name, bodies):
            raise ValueError(f"a loop without a known trip count: {line.strip()[:200]}")


def _trips(line: str, bodies: Mapping[str, list[str]]) -> int | None:
    """Return how often a loop runs, or None if it is not known.

    XLA for TPUs does not write it down: `i < n`, where JAX counts i from zero by one.
    """
    known = _TRIPS.search(line)
    if known:
        return int(known[1])
    test = bodies[_CONDITION.findall(line)[0]]
    constants = dict(found for line in test for found in _CONSTANT.findall(line))
    bounds = [constants.get(name) for line in test for name in _BELOW.findall(line)]
    return int(bounds[0]) if len(bounds) == 1 and bounds[0] is not None else None


def _communicates(name: str, bodies: Mapping[str, list[str]]) -> bool:
    return any(_found(bodies[name])) or any(
        _communicates(called, bodies)
        for line in bodies[name]
        for called in _CALLED.findall(line)
        if called in bodies
    )


def _found(lines: list[str]) -> list[tuple[str, int]]:
    """List the collectives of a computation."""
    found = []
    for line in lines:
        operation = _OPERATION.match(line)
        if not operation:
            continue
        # Of one that is started and awaited, the latter has the shape of the result.
        kind = operation[2].removesuffix("-done")
        if kind in KINDS:
            found.append((kind, _size(operation[1])))
    return found


def _size(shape: str) -> int:
    """Add up the bytes of a result."""
    total = 0
    for kind, axes in _ARRAY.findall(shape):
        size = WIDTHS.get(kind) or int(re.sub(r"\D", "", kind)) // 8
        for axis in filter(None, axes.split(",")):
            size *= int(axis)
        total += size
    return total
