"""The cost of each measurement, and which of them a budget affords."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import NamedTuple

from mlox._check.answers import SMALL
from mlox._check.vectors import MOST_DIRECTIONS

# Counted in gradients of losses: a step takes one, and a product with a Hessian two.
# A dense solve of n unknowns takes n products, a long one at most 200; Newton's method
# takes about ten steps from an answer of the program, and three from a solved one. It
# may take more where the budget has something left.
DEFAULT = 200_000
LONG = 200
MOST_NOISY = 4
FIRST, AGAIN, MOST_STEPS = 10, 3, 40


class Part(enum.Enum):
    """The measurements of a check, in the order in which a budget is spent."""

    LOSSES = "losses and their derivatives"
    SOLVER = "exact solve at the same answer"
    LOWER = "exact solve at the solved answer"
    DIFFERENCES = "differences, answers re-solved"
    PROGRAM = "differences of the program"
    WINDOW = "exact unroll of the window"
    PRECISION = "the same in another precision"
    NOISE = "other batches and keys"
    METASMOOTHNESS = "metasmoothness of the inner loop"


class Sizes(NamedTuple):
    """What the costs depend on.

    Attributes:
        steps: The optimizer steps in the window of the upper.
        unknowns: The parameters of all answers.
        samples: The batches over which the costs of answers are summed.
        problems: The upper and its answers.
        directions: The directions of differences.
        products: The products of the configured solvers.
    """

    steps: int
    unknowns: int
    samples: int
    problems: int
    directions: int
    products: int


class Steps(NamedTuple):
    """The most Newton steps that solutions of the answers take.

    Attributes:
        first: From an answer of the program.
        again: From a solved one, after a small move of the upper.
    """

    first: int
    again: int


def price_solve(sizes: Sizes) -> int:
    """Return the cost of one linear solve, in gradients."""
    return 2 * (sizes.unknowns if sizes.unknowns <= SMALL else LONG) * sizes.samples


def price_step(sizes: Sizes) -> int:
    """Return the cost of one Newton step, in gradients."""
    return price_solve(sizes) + 5 * sizes.samples


def prices(sizes: Sizes) -> dict[Part, int]:
    """Return the estimated cost of each measurement, in gradients."""
    solve, newton = price_solve(sizes), price_step(sizes)
    once = sizes.steps + 2 * sizes.products + 2 * sizes.problems
    ends = 2 * sizes.directions
    return {
        Part.LOSSES: 100 * sizes.problems**2 * sizes.samples,
        Part.SOLVER: solve,
        Part.LOWER: FIRST * newton + 2 * solve,
        Part.DIFFERENCES: ends * (AGAIN * newton + solve),
        Part.PROGRAM: 3 * ends * once,
        Part.WINDOW: 3 * sizes.steps,
        Part.PRECISION: once,
        Part.NOISE: 2 * MOST_NOISY * solve,
        Part.METASMOOTHNESS: 7 * once,
    }


def afford(
    costs: Mapping[Part, int], wanted: frozenset[Part], budget: float
) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Return the measurements that a budget affords, and those that it does not.

    Example:
        >>> costs = {Part.SOLVER: 5, Part.LOWER: 50, Part.NOISE: 4}
        >>> made, left = afford(costs, frozenset(costs), 10)
        >>> [part.name for part in made], [part.name for part in left]
        (['SOLVER', 'NOISE'], ['LOWER'])
    """
    made: list[Part] = []
    left: list[Part] = []
    for part in Part:
        if part not in wanted:
            continue
        fits = sum(costs[p] for p in made) + costs[part] <= budget
        (made if fits else left).append(part)
    return tuple(made), tuple(left)


def afford_steps(sizes: Sizes, made: Collection[Part], budget: float) -> Steps:
    """Return how many Newton steps a budget affords beside the measurements made.

    Example:
        >>> sizes = Sizes(1, 2, 1, 2, directions=2, products=0)
        >>> cost = prices(sizes)[Part.LOWER]
        >>> afford_steps(sizes, [Part.LOWER], cost)
        Steps(first=10, again=3)
        >>> afford_steps(sizes, [Part.LOWER], cost + 5 * price_step(sizes))
        Steps(first=15, again=3)
    """
    costs = prices(sizes)
    spare = int(max(0, budget - sum(costs[part] for part in made)) // price_step(sizes))
    first = min(MOST_STEPS - FIRST, spare)
    again = (spare - first) // (2 * sizes.directions)
    return Steps(FIRST + first, min(MOST_STEPS, AGAIN + again))


def count_directions(unknowns: int) -> int:
    """Return the number of directions of differences in a space."""
    return min(unknowns, MOST_DIRECTIONS)
