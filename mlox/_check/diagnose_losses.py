"""Diagnose losses: random numbers, statistics of a batch, precision."""

from __future__ import annotations

from collections.abc import Iterator

from mlox._check.figures import Figures
from mlox._check.finding import Cause, Finding

SAME = 1e-10
PRECISE = 0.05


def find_random_losses(figures: Figures) -> list[Finding]:
    """List losses that draw random numbers of their own."""
    return [
        Finding(
            Cause.RANDOM_LOSS,
            name,
            f"The loss of {name!r} changes by {change:.1g} of its value when it is "
            "traced again with the same arguments: it draws random numbers of its own, "
            "so two evaluations of one hypergradient do not fit together.",
            "Draw from ctx.rng, with Problem.create(rng=), which is the same in all "
            "evaluations of one hypergradient.",
        )
        for name, change in figures.changes.items()
        if change > SAME
    ]


def diagnose_losses(figures: Figures) -> Iterator[Finding]:
    """Yield what is wrong with the values of losses."""
    if figures.mixing > 1e-6:
        yield Finding(
            Cause.BATCH_STATISTICS,
            figures.name,
            f"The loss of {figures.name!r} normalizes over its own batch: its examples "
            "depend on each other (batch norm in training mode).",
            "Evaluate the model with its running statistics, ctx.lower.model_state, "
            "and without training mode in the upper.",
        )


def diagnose_precision(figures: Figures) -> Iterator[Finding]:
    """Yield a hypergradient that is another one in another precision."""
    distance = figures.differences.precision
    if distance is None or figures.double:
        return
    if not distance.error < PRECISE:
        yield Finding(
            Cause.LOW_PRECISION,
            figures.name,
            f"The hypergradient in the precision of the run is {distance.text} "
            "off the same one in float64.",
            "Keep parameters, and the sums of losses, in float32 or float64; for "
            "FiniteDifference choose a larger epsilon.",
        )


def blame_numbers(figures: Figures) -> Finding:
    """Return the finding of a hypergradient that is not finite, for no other reason."""
    return Finding(
        Cause.NOT_FINITE,
        figures.name,
        f"The hypergradient of {figures.name!r} is not finite, in its window of steps.",
        "Look at the losses of the lowers: a step that is too long makes them diverge.",
    )
