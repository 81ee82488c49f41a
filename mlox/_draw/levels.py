"""The levels of a picture: by depth, and problems that read each other apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def split_depths(
    depth: Mapping[str, int], reads: Sequence[tuple[str, str]]
) -> dict[str, int]:
    """Return levels in the order of depths, which differ at the two ends of each read.

    Links lead from one level to another, but problems of one depth may read each other
    as constants.

    Example:
        >>> split_depths({"a": 0, "b": 0, "c": 0, "d": 1}, [("a", "b"), ("b", "a")])
        {'a': 0, 'b': 1, 'c': 0, 'd': 2}
    """
    shelves: dict[str, tuple[int, int]] = {}
    for name in depth:
        others = {a if b == name else b for a, b in reads if name in (a, b)}
        taken = {shelves[n] for n in others if n in shelves}
        free = ((depth[name], i) for i in range(len(taken) + 1))
        shelves[name] = next(shelf for shelf in free if shelf not in taken)
    order = {shelf: i for i, shelf in enumerate(sorted(set(shelves.values())))}
    return {name: order[shelf] for name, shelf in shelves.items()}
