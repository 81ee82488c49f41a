"""Diagnose answers: waiting, optimizers, loops, projections, unsolved lowers."""

from __future__ import annotations

from collections.abc import Iterator

from mlox._check.figures import WRONG, Figures, Lower
from mlox._check.finding import Cause, Finding
from mlox._check.kinds import is_approximate
from mlox._check.updates import Updates
from mlox._engine.slopes import InfiniteSlope
from mlox._utils.describe import show_call

CLIPPED = 0.9
NOWHERE = {
    InfiniteSlope.ENTRIES: "where a gradient is zero (the square root of Adam)",
    InfiniteSlope.NORMS: "where the whole gradient is zero (the norm of a clipping)",
}
REMEDY = {
    InfiniteSlope.ENTRIES: (
        "Pass eps_root=1e-16 to the optimizer (about eps squared), or use "
        "mlox.Implicit()."
    ),
    InfiniteSlope.NORMS: "Clip entries by optax.clip, or use mlox.Implicit().",
}


def diagnose_schedule(figures: Figures) -> Iterator[Finding]:
    """Yield answers for which the upper waits."""
    for lower in figures.lowers:
        if lower.waits > 0:
            yield Finding(
                Cause.WARMUP,
                lower.name,
                f"{figures.name!r} waits until {lower.name!r} has made "
                f"{lower.waits} more steps, {_cycles(lower)}: until then it does not "
                "move.",
                "Lower warmup_steps, or check a state after the warm-up.",
            )


def _cycles(lower: Lower) -> str:
    count = -(-lower.waits // max(lower.steps, 1))
    return "one more cycle" if count == 1 else f"{count} more cycles"


def diagnose_optimizers(figures: Figures) -> Iterator[Finding]:
    """Yield unrolled optimizers whose eps_root is too small or too large."""
    for lower in figures.lowers:
        updates = lower.updates
        if not lower.unrolled or updates is None or is_approximate(lower.method):
            continue
        infinite = _find_infinite(updates, figures.finite)
        if infinite is not None:
            then = "can be" if figures.finite else "is"
            yield Finding(
                Cause.EPS_ROOT,
                lower.name,
                f"{lower.name!r} is Unrolled, and its optimizer has no derivative "
                f"{NOWHERE[infinite]}: the hypergradient {then} NaN.",
                REMEDY[infinite],
            )
        floor = updates.floor
        if floor is not None and floor >= 1e-5 and updates.typical < 100 * floor:
            yield Finding(
                Cause.EPS_ROOT,
                lower.name,
                f"The optimizer of {lower.name!r} takes gradients below {floor:.0e} "
                f"for small ones, and those here are about {updates.typical:.0e}: its "
                "eps or eps_root shortens the steps. An eps_root acts like an eps of "
                "its square root.",
                "Pass eps_root=1e-16 (about eps squared).",
            )


def _find_infinite(updates: Updates, finite: bool) -> InfiniteSlope | None:
    # A whole gradient is rarely zero: it is told where that has made numbers NaN.
    clips = updates.infinite is InfiniteSlope.NORMS
    return None if clips and finite else updates.infinite


def diagnose_loops(figures: Figures) -> Iterator[Finding]:
    """Yield unrolled loops that are cut short or chaotic."""
    d = figures.differences
    for lower in figures.lowers:
        if not lower.unrolled:
            continue
        approximate = is_approximate(lower.method)
        if d.window is not None and not approximate and not d.window.error < WRONG:
            yield Finding(
                Cause.TRUNCATED,
                lower.name,
                f"{show_call(lower.method)} differentiates a part of the "
                f"{lower.steps} steps: the hypergradient is {d.window.text} off that "
                f"of the whole window (cosine {d.window.cosine:.2f}).",
                "Use more last_steps, or mlox.Unrolled() with "
                "checkpoint='segments' if memory is short.",
            )
    smooth = figures.metasmoothness
    chaotic = smooth is not None and smooth < 0.5
    if figures.finite and d.program is not None and not min(d.steps) < WRONG:
        chaotic = chaotic or max(d.steps) > 10
    loop = [n.name for n in figures.lowers]
    if chaotic and loop:
        yield Finding(
            Cause.CHAOTIC,
            loop[0],
            f"The inner loop of {loop[0]!r} is chaotic: metasmoothness "
            f"{'-' if smooth is None else format(smooth, '.2f')} (1 is smooth, 0 is "
            "chaos), so the end of the loop does not move steadily with the upper.",
            "Use a smaller learning rate or fewer steps in the loop.",
        )


def diagnose_projections(figures: Figures) -> Iterator[Finding]:
    """Yield implicit answers whose `project` is not the projection onto a set."""
    for lower in figures.lowers:
        if lower.unrolled or is_approximate(lower.method) or lower.updates is None:
            continue
        if lower.updates.unprojected > 1e-3:
            yield Finding(
                Cause.PROJECTION,
                lower.name,
                f"project of {lower.name!r} is no Euclidean projection onto a set: its "
                "derivative is not symmetric, or a second application moves on (by "
                f"{lower.updates.unprojected:.2g}). So the answer is not that of the "
                "cost on a set, which the implicit formula takes for granted.",
                "Use a projection, such as those of optax.projections, or "
                "mlox.Unrolled(), which differentiates any function.",
            )


def diagnose_answers(figures: Figures) -> Iterator[Finding]:
    """Yield answers that are not those of their costs, and why."""
    distance = figures.differences.lower
    if distance is None or not figures.unsolved:
        return
    judged = [
        n
        for n in figures.lowers
        if n.top and not (is_approximate(n.method) or n.rests_elsewhere)
    ]
    explained = False
    for lower in judged:
        updates = lower.updates
        if updates is None:
            continue
        if updates.clipped is not None and updates.clipped < CLIPPED:
            explained = True
            yield Finding(
                Cause.CLIPPED,
                lower.name,
                f"The optimizer of {lower.name!r} clips: its steps have "
                f"{updates.clipped:.1%} of the length that the gradient asks for, and "
                f"the answer is {_far(lower)} the solved one.",
                "Raise the bound of the clipping, or make more steps: unroll_steps=.",
            )
    if explained or not judged:
        return
    worst = max(judged, key=lambda lower: lower.distance or 0.0)
    yield Finding(
        Cause.LOWER_UNSOLVED,
        worst.name,
        f"{worst.name!r} has not reached its answer: it is {_far(worst)} the solved "
        f"one, where the hypergradient differs by {distance.text} (cosine "
        f"{distance.cosine:.2f}).",
        _solve_further(worst),
    )


def _solve_further(lower: Lower) -> str:
    """Return the remedies for an answer that its optimizer has not reached."""
    steps = "Make more steps (unroll_steps=) or longer ones"
    exact = "use mlox.Unrolled(), which is exact for the steps that are made."
    if lower.updates is None or not lower.updates.drifts:
        return f"{steps}, or {exact}"
    return (
        f"{steps}, or {exact} Its optimizer moves at a zero gradient (weight decay), "
        "so that it comes to rest elsewhere than its loss: use mlox.FixedPoint, which "
        "differentiates its steps, or write the decay into the loss."
    )


def _far(lower: Lower) -> str:
    if lower.distance is None:
        return "away from"
    return f"{lower.distance:.2g} of its norm away from"
