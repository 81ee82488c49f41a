"""Implicit differentiation: mlox beside jaxopt and optimistix.

    python benchmarks/all.py --only "implicit differentiation"

Logistic hyperparameters and Meta-Weight-Net with some steps of the lower, beside
jaxopt's `custom_root`, as in floors.py without the losses of the lower; and a lower
that is solved in float64 (`_solved`), where hypergradients are exact.
"""

from __future__ import annotations

import functools

from _comparison import Comparison, Part
from peers import _solved
from peers.floors import CG, DAMPED, NEUMANN, Job

AT_MOST = 1.02
JOBS = (
    Job("logistic", 1, "CG", CG, "none", 50, length=2000, quick=True),
    Job("logistic", 10, "Neumann", NEUMANN, "none", 50, length=500),
    Job("logistic", 100, "CG", CG, "none", 50),
    Job("MLP", 5, "CG", DAMPED, "none", length=2),
)
RESIDUAL = (
    "custom_root reports no residual. Its CG evaluates the first residual by one "
    "product with the Hessian more; it has no Neumann series, and is given ours."
)
SOLVED = {
    "iterations": 150,
    "rate": 1.0,
    "products": 100,
    "tolerance": 1e-10,
    "dispatch": 1,
}


def from_steps(job: Job) -> Comparison:
    """Compare a job with jaxopt's `custom_root`."""
    tiny = job.network == "logistic"
    peer = Part("jaxopt", "jaxopt", "peers.implicit_jaxopt", {}, AT_MOST)
    return Comparison(
        group="Implicit differentiation",
        job=f"{job.name}, custom_root",
        given=dict,
        settings={**job.settings, "compare metrics": False},
        parts=(
            Part("mlox", "jaxopt", "peers.floors_mlox"),
            peer._replace(remark=RESIDUAL),
        ),
        steps=50 if tiny else 4,
        tolerance=1e-6 if tiny else 1e-5,
        length=job.length,
        quick=job.quick,
    )


def solved(library: str, at_most: float | None) -> Comparison:
    """Compare the job of `_solved` with a library, and with a step by hand."""
    return Comparison(
        group="Implicit differentiation",
        job=f"solved logistic regression, float64, beside {library}",
        given=functools.partial(_solved.draw, 400, 50),
        settings=SOLVED,
        parts=(
            Part("mlox", library, "peers.solved_mlox"),
            Part("by hand", library, "peers.solved_hand", {}, 1.05),
            Part(library, library, f"peers.solved_{library}", {}, at_most),
        ),
        steps=20,
        tolerance=1e-8,
        length=20,
        quick=library == "optimistix",
    )


COMPARISONS = (
    *map(from_steps, JOBS),
    solved("jaxopt", AT_MOST),
    solved("optimistix", None),
)
