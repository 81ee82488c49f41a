"""Diagnose losses whose derivatives are not those of their values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlox._check.diagnose_edges import is_cut
from mlox._check.figures import Figures
from mlox._check.finding import Cause, Finding
from mlox._check.losses import Edge

JUMP = 0.03


def diagnose_derivatives(figures: Figures) -> Iterator[Finding]:
    """Yield losses that jump, and losses whose derivatives are wrong."""
    # A loss in 16 bits is a staircase, and its steps are those of its precision.
    for name, jump in figures.jumps.items():
        if jump > JUMP and name not in figures.narrow:
            yield Finding(
                Cause.NOT_SMOOTH,
                name,
                f"The loss of {name!r} or its gradient jumps along a line, by "
                f"{jump:.0%} of its range there.",
                "Replace hinges, absolute values, rounding, sorting and argmax by "
                "smooth functions, e.g. jax.nn.softplus, or use a method that does "
                "not differentiate them.",
            )
    for name, edge in _find_wrong(figures).items():
        smooth = figures.jumps.get(name, 0.0) <= JUMP
        if smooth and name not in figures.narrow:
            yield _blame_derivative(edge, custom=name in figures.custom)


def _find_wrong(figures: Figures) -> dict[str, Edge]:
    """Return, for each cost with a wrong derivative, where that shows."""
    wrong: dict[str, Edge] = {}
    for edge in figures.edges:
        if edge.is_wrong and (edge.own or not is_cut(edge)):
            wrong.setdefault(edge.cost, edge)
    return wrong


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
        "rounding in the loss.",
    )
