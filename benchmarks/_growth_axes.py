"""The axes along which a program may grow, the methods on each, and their bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import _growth_cases as cases

import mlox

QUANTITIES = ("equations", "trace", "compile", "time", "memory")

# Exponents of the size, in the order of QUANTITIES.
CONSTANT = (0, 0, 0, 0, 0)
LINEAR = (1, 1, 1, 1, 1)
AT_RUN = (0, 0, 0, 1, 1)
IN_TIME = (0, 0, 0, 1, 0)


class Series(NamedTuple):
    """A method on an axis.

    Attributes:
        method: What it is.
        sizes: The sizes that are measured.
        bounds: The largest exponent of each quantity, or factor per level.
    """

    method: Any
    sizes: Sequence[int]
    bounds: Sequence[float]


class Axis(NamedTuple):
    """A way for a program to grow.

    Attributes:
        size: What grows, as a column of a table calls it.
        make: (size, method) -> a program.
        series: By the name of the method.
        why: The reason for the bounds.
        exponential: Whether the bound is a factor per unit, not an exponent.
    """

    size: str
    make: Callable[[int, Any], cases.Case]
    series: Mapping[str, Series]
    why: str
    exponential: bool = False


def _levels(count: int) -> Series:
    bounds = (*IN_TIME[:-1], 1 / max(count, 1))
    return Series(mlox.Unrolled(levels=count), STEPS, bounds)


def _all(sizes: Sequence[int], bounds: Sequence[float], methods: Any) -> Any:
    return {name: Series(method, sizes, bounds) for name, method in methods.items()}


STEPS = [4**i for i in range(7)]
LEVELS = range(2, 7)
CG = mlox.Implicit(mlox.CG(2))
EACH = {
    "Unrolled()": mlox.Unrolled(),
    "Implicit(CG(2))": CG,
    "FiniteDifference()": mlox.FiniteDifference(),
}

AXES = {
    "unroll steps": Axis(
        "steps",
        cases.unroll_steps,
        {f"Unrolled(levels={n})": _levels(n) for n in range(4)}
        | _all(STEPS, IN_TIME, {k: EACH[k] for k in list(EACH)[1:]}),
        "A loop is one program for any number of steps. With L levels of checkpoints "
        "reverse mode stores L T^(1/L) states, with none all that the T steps "
        "compute; the other methods store one state.",
    ),
    "levels": Axis(
        "levels",
        cases.levels,
        {
            "Implicit()": Series(mlox.Implicit(), LEVELS, (2, 2, 2, 4, 4)),
            "Unrolled()": Series(mlox.Unrolled(), LEVELS, (2, 2, 2, 4, 4)),
            "FiniteDifference()": Series(
                mlox.FiniteDifference(), LEVELS, (2, 2, 2, 2, 2)
            ),
        },
        "The lowest cost is differentiated in one more direction for each level above, "
        "which doubles its operations, and a level makes two steps for each of the one "
        "above, all of which are stored where they are unrolled. The implicit system "
        "of a level has twice the unknowns of the one below: its solver makes twice as "
        "many products, and stores as many vectors of twice the length, at most. "
        "Nested derivatives add equations of their own: the tests accept that a level "
        "adds 2.6 times what the one below adds.",
        exponential=True,
    ),
    "problems": Axis(
        "problems",
        cases.problems,
        _all([2, 4, 16, 64, 256], LINEAR, EACH),
        "Independent pairs: nothing may be done for two of them together.",
    ),
    "diamonds": Axis(
        "diamonds",
        cases.diamonds,
        _all([1, 2, 4, 8, 12], LINEAR, EACH),
        "The top of d diamonds reaches the lowest problem on 2^d paths. Sums over "
        "edges visit each of the 4 d edges once. Each problem marks what it sees of "
        "those below as constants: equations without an operation, whose number is "
        "quadratic; the tests count all others, which are not.",
    ),
    "parameters": Axis(
        "parameters",
        cases.parameters,
        _all([10**i for i in range(3, 9)], AT_RUN, EACH),
        "The program does not depend on the size of an array, and no array is larger "
        "than the parameters at the steps that are unrolled.",
    ),
    "tasks": Axis(
        "tasks",
        cases.tasks,
        _all([4**i for i in range(6)], AT_RUN, {k: EACH[k] for k in list(EACH)[:2]}),
        "`tasks=` is one program for one task, under `jax.vmap`.",
    ),
}
