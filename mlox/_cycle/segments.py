"""How the rounds of a window are cut into nested segments."""

from __future__ import annotations

import functools
from typing import NamedTuple

# With L levels of checkpoints, T = n_1 n_2 ... n_L rounds are n_1 segments of n_2
# segments and so on. Reverse mode then stores, at any time, the states at the n_1 ends
# of the outer segments, the n_2 ends within one of them, ...: n_1 + ... + n_L states,
# which is least, L T^(1/L), where all n_i are equal (Griewank 1992). Rounds that no
# such product takes up are made before, one by one, each with a state of its own.


class Segments(NamedTuple):
    """The rounds of a window in nested segments.

    Attributes:
        first: The rounds before the segments.
        sizes: The numbers of segments in a segment, from the outermost to the
            innermost, whose segments are single rounds.
    """

    first: int
    sizes: tuple[int, ...]

    @property
    def states(self) -> int:
        """The most states that reverse mode stores at one time."""
        return self.first + sum(self.sizes)


@functools.cache
def cut_rounds(rounds: int, levels: int) -> Segments:
    """Cut rounds into so many levels of segments, with few states to be stored.

    Example:
        >>> cut_rounds(4096, 3)
        Segments(first=0, sizes=(16, 16, 16))
        >>> cut_rounds(101, 2)
        Segments(first=1, sizes=(10, 10))
    """
    root = round(rounds ** (1 / levels))
    found = [
        Segments(first, _factor(rounds - first, levels))
        for first in range(min(2 * root + 1, rounds))
    ]
    # Rounds of their own make a second program of the step: not for a few states.
    least = min(segments.states for segments in found)
    enough = 1.2 * least if found[0].states <= 1.2 * least else least
    return next(segments for segments in found if segments.states <= enough)


@functools.cache
def _factor(count: int, levels: int) -> tuple[int, ...]:
    """Return factors of a count with the least sum."""
    if levels == 1:
        return (count,)
    divisors = {
        d
        for small in range(1, int(count**0.5) + 1)
        if count % small == 0
        for d in (small, count // small)
    }
    splits = [(d, *_factor(count // d, levels - 1)) for d in sorted(divisors)]
    return min(splits, key=sum)
