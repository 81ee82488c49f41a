"""Diagnose losses: random numbers, statistics of a batch, precision."""

from __future__ import annotations

from collections.abc import Iterator

from mlox._check.figures import Figures
from mlox._check.finding import Cause, Finding
from mlox.methods import FiniteDifference

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
            "Evaluate the model without training mode in the upper, by the running "
            f"statistics in {_name_states(figures)}: use_running_average=True for a "
            "BatchNorm of Flax, model.eval() for an NNX model.",
        )


def _name_states(figures: Figures) -> str:
    stateful = [n.name for n in figures.lowers if n.stateful]
    names = stateful or [n.name for n in figures.lowers[:1]]
    return " and ".join(f"ctx.{name}.model_state" for name in names)


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
            _raise_precision(figures),
        )


def _raise_precision(figures: Figures) -> str:
    """Return the remedy for the precision that the run has."""
    remedy = "Keep parameters, and the sums of losses, in float32 or float64"
    if figures.single and not figures.narrow:
        remedy = (
            "Make the lower better conditioned (a penalty, or damping in its solver), "
            "or compute in float64: jax.config.update('jax_enable_x64', True), and "
            "parameters and batches in float64"
        )
    if any(isinstance(n.method, FiniteDifference) for n in figures.lowers):
        remedy += "; for FiniteDifference choose a larger epsilon"
    return f"{remedy}."


def blame_numbers(figures: Figures) -> Finding:
    """Return the finding of a hypergradient that is not finite, for no other reason."""
    return Finding(
        Cause.NOT_FINITE,
        figures.name,
        f"The hypergradient of {figures.name!r} is not finite, in its window of steps.",
        "Look at the losses of the lowers: a step that is too long makes them diverge.",
    )
