"""From figures to findings: causes first, and not what follows from them."""

from __future__ import annotations

from mlox._check.diagnose_derivatives import diagnose_derivatives
from mlox._check.diagnose_edges import diagnose_edges, find_reversed_edges
from mlox._check.diagnose_losses import (
    blame_numbers,
    diagnose_losses,
    diagnose_precision,
    find_random_losses,
)
from mlox._check.diagnose_lowers import (
    diagnose_answers,
    diagnose_loops,
    diagnose_optimizers,
    diagnose_projections,
    diagnose_schedule,
)
from mlox._check.diagnose_methods import (
    diagnose_coupling,
    diagnose_curvature,
    diagnose_methods,
)
from mlox._check.figures import Figures
from mlox._check.finding import Cause, Finding

# What follows from a loss that is wrong itself, or from a loop that is chaotic, is not
# told beside it.
LOSSES = {Cause.NOT_SMOOTH, Cause.CUSTOM_RULE, Cause.DERIVATIVE_CUT}

# A solver that does not solve its system amplifies rounding.
SYSTEMS = {Cause.INDEFINITE, Cause.SOLVER_TOO_SHORT, Cause.STEP_TOO_LARGE}


def diagnose(figures: Figures) -> tuple[Finding, ...]:
    """Return what is wrong."""
    waiting = list(diagnose_schedule(figures))
    for root in (find_reversed_edges(figures), find_random_losses(figures)):
        if root:
            return (*waiting, *root)
    first = [
        *waiting,
        *diagnose_edges(figures),
        *diagnose_derivatives(figures),
        *diagnose_losses(figures),
        *diagnose_optimizers(figures),
    ]
    if not figures.finite:
        return tuple(first or [blame_numbers(figures)])
    if LOSSES & {finding.cause for finding in first}:
        return tuple(first)
    loops = list(diagnose_loops(figures))
    unrolled = any(lower.unrolled for lower in figures.lowers)
    if unrolled and any(finding.cause is Cause.CHAOTIC for finding in loops):
        return (*first, *loops)
    last = list(diagnose_projections(figures)) or list(diagnose_curvature(figures))
    if not last:
        last = [*diagnose_methods(figures), *diagnose_answers(figures)]
    if not SYSTEMS & {finding.cause for finding in last}:
        first += diagnose_precision(figures)
    return (*first, *loops, *diagnose_coupling(figures), *last)
