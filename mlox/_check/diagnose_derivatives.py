"""Diagnose losses whose derivatives are not those of their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from mlox._check.diagnose_edges import is_cut
from mlox._check.figures import WRONG, Figures
from mlox._check.finding import Cause, Finding
from mlox._check.kinds import is_approximate
from mlox._check.losses import Edge

JUMP = 0.03
LOWEST = 0.01


def diagnose_derivatives(figures: Figures) -> Iterator[Finding]:
    """Yield losses that jump, and losses whose derivatives are wrong."""
    jumping = _find_jumping(figures)
    for name, (what, jump) in jumping.items():
        yield Finding(
            Cause.NOT_SMOOTH,
            name,
            f"{what} of {name!r} jumps along a line, by {jump:.0%} of its range there.",
            "Replace hinges, absolute values, rounding, sorting and argmax by smooth "
            "functions, e.g. jax.nn.softplus, or use a method that does not "
            "differentiate them.",
        )
    for name, edge in _find_wrong(figures).items():
        if name not in jumping and name not in figures.unseen:
            yield _blame_derivative(edge, custom=name in figures.custom)


def _find_jumping(figures: Figures) -> dict[str, tuple[str, float]]:
    """Return what of each loss jumps, and how far, if that matters.

    A value that jumps always does: its derivative misses the jump. A gradient jumps in
    every network with relu: it matters if a derivative is seen to be wrong, or if an
    answer is where its cost is lowest, and is not stationary there. An
    approximate method does not differentiate the gradient, so that it may jump.
    """
    jumps = _large(figures.jumps, figures)
    found = {n: ("The loss", jump) for n, jump in jumps.items()}
    kinks = {n: x for n, x in _large(figures.kinks, figures).items() if n not in found}
    rough = _find_approximate(figures)
    kinks = {n: x for n, x in kinks.items() if n not in rough}
    wrong = {edge.cost for edge in figures.edges if edge.is_wrong}
    loop = figures.differences.program
    lowest = figures.descent and max(figures.descent.values()) < LOWEST
    lost = loop is not None and not loop.error < WRONG
    if kinks and not wrong.intersection(kinks) and (lowest or lost):
        wrong = {max(kinks, key=lambda n: kinks[n])}  # which one, cannot be told
    slopes = {n: ("The gradient", x) for n, x in kinks.items() if n in wrong}
    return {**found, **slopes}


def _find_approximate(figures: Figures) -> frozenset[str]:
    """Return the answers whose methods are judged by the direction alone."""
    return frozenset(n.name for n in figures.lowers if is_approximate(n.method))


def _large(jumps: Mapping[str, float], figures: Figures) -> dict[str, float]:
    return {n: x for n, x in jumps.items() if x > JUMP and n not in figures.unseen}


def _find_wrong(figures: Figures) -> dict[str, Edge]:
    """Return, for each cost with a wrong derivative, where that shows."""
    wrong: dict[str, Edge] = {}
    # Where a gradient jumps, only the slopes of its cost are seen well.
    rough = _find_approximate(figures).intersection(_large(figures.kinks, figures))
    rough -= figures.custom
    for edge in figures.edges:
        cut = not edge.own and is_cut(edge)
        # A weight that depends on a stopped loss is meant to be a constant; a rule of
        # the user's own is meant to be right.
        meant = edge.cost not in figures.custom and _is_harmless(figures)
        unused = edge.cost in rough and (edge.own or not edge.first_wrong)
        if edge.is_wrong and not (cut or meant or unused):
            wrong.setdefault(edge.cost, edge)
    return wrong


def _is_harmless(figures: Figures) -> bool:
    """Return whether the hypergradient is seen to be that of its values."""
    d = figures.differences
    seen = [x.error for x in (d.loss, d.program) if x is not None]
    return bool(seen) and max(seen) < WRONG


def _blame_derivative(edge: Edge, *, custom: bool) -> Finding:
    what, seen, true = "derivative", edge.computed, edge.measured
    if not edge.first_wrong:
        what = "second derivative"
        seen = float(np.linalg.norm(edge.slope_computed))
        true = float(np.linalg.norm(edge.slope_measured))
    found = (
        f"The {what} of the loss of {edge.cost!r} along a direction of {edge.by!r} is "
        f"{seen:.4g}, differences give {true:.4g}"
    )
    if edge.has_kink:
        return Finding(
            Cause.NOT_SMOOTH,
            edge.cost,
            f"The loss of {edge.cost!r} or its gradient has a kink at this very point: "
            f"its slopes to both sides along a direction of {edge.by!r} differ.",
            "Start away from it (zero weights below a relu), or replace it by a smooth "
            "function, e.g. jax.nn.softplus.",
        )
    if custom:
        return Finding(
            Cause.CUSTOM_RULE,
            edge.cost,
            f"{found}; the loss contains a jax.custom_vjp or jax.custom_jvp.",
            "Correct the custom rule, or remove it.",
        )
    where = f" (zero at {', '.join(edge.blind[:3])})" if edge.blind else ""
    return Finding(
        Cause.DERIVATIVE_CUT,
        edge.cost,
        f"{found}: a part of it is cut{where}.",
        "Look for jax.lax.stop_gradient, conversions to integers or NumPy, and "
        "rounding in the loss. If it is a mean over samples, use mlox.magic_box.",
    )
