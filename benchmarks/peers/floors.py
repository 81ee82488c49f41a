"""mlox beside the same step hand-written in plain JAX, with the same outputs.

    python benchmarks/all.py --only floors

Logistic hyperparameters, and Meta-Weight-Net on an MLP and a CNN, with the losses of
every step of the lower and without, one cycle per call and 50 in one program. Both
sides return the same parameters, optimizer states, step counts and metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from _comparison import Comparison, Part
from peers._ways import by_hand, by_hand_on_arrays


class Job(NamedTuple):
    """A job, with the names and amounts that `_steps` knows.

    Attributes:
        network: "logistic", "MLP" or "CNN".
        unroll: The steps of the lower per step of the upper.
        method: "DARTS", "CG" or "Neumann".
        solver: The amounts of the method.
        metrics: Those of `mlox.Engine`: "all", or "none" of the lower.
        dispatch: The cycles in one program.
        length: The cycles of one timed sample.
        quick: Whether `--quick` includes it.
    """

    network: str
    unroll: int
    method: str
    solver: Mapping[str, Any]
    metrics: str = "all"
    dispatch: int = 1
    length: int = 100
    quick: bool = False

    @property
    def name(self) -> str:
        """What the table calls it."""
        words = f"{self.method} {self.solver.get('iterations', '')}".strip()
        return f"{self.network}, unroll {self.unroll}, {words}"

    @property
    def settings(self) -> dict[str, Any]:
        """What all sides are told."""
        told = {
            "network": self.network,
            "unroll": self.unroll,
            "method": self.method,
            "solver": dict(self.solver),
            "sizes": {},
            "metrics": self.metrics,
            "dispatch": self.dispatch,
        }
        return told | {"compare metrics": True}


DARTS: Mapping[str, Any] = {}
CG, NEUMANN = {"iterations": 3}, {"iterations": 3, "step": 0.1}
# Nets with rectifiers have Hessians that are not definite: their systems are damped.
DAMPED = {"iterations": 5, "damping": 1.0}
JOBS = (
    Job("logistic", 1, "DARTS", DARTS, length=1000, quick=True),
    Job("logistic", 10, "CG", CG, length=500),
    Job("logistic", 100, "Neumann", NEUMANN),
    Job("logistic", 1, "CG", CG, metrics="none", length=1000),
    Job("MLP", 5, "DARTS", DARTS, length=5),
    Job("MLP", 1, "CG", DAMPED, metrics="none", length=4),
    Job("CNN", 5, "CG", DAMPED, length=2),
    Job("logistic", 1, "DARTS", DARTS, dispatch=50, length=2000),
    Job("logistic", 1, "CG", CG, dispatch=50, length=2000, quick=True),
    Job("logistic", 10, "Neumann", NEUMANN, dispatch=50, length=500),
    Job("logistic", 1, "CG", CG, metrics="none", dispatch=50, length=2000),
    Job("logistic", 10, "DARTS", DARTS, metrics="none", dispatch=50, length=500),
    Job("logistic", 100, "Neumann", NEUMANN, metrics="none", dispatch=50),
)


def compare(job: Job) -> Comparison:
    """Compare a job with the step by hand."""
    hand = "peers.floors_hand"
    parts = [Part("mlox", "jax", "peers.floors_mlox"), by_hand(hand)]
    tiny = job.network == "logistic"
    if tiny and job.dispatch == 1:
        parts.append(by_hand_on_arrays(hand))
    return Comparison(
        group="Beside the step by hand",
        job=", ".join(
            [
                job.name,
                *(["no losses of the lower"] if job.metrics == "none" else []),
                *([f"{job.dispatch} per call"] if job.dispatch > 1 else []),
            ]
        ),
        given=dict,
        settings=job.settings,
        parts=tuple(parts),
        steps=job.dispatch if job.dispatch > 1 else 5,
        # The gap is a difference of losses, which loses digits in float32.
        tolerance=1e-2,
        length=job.length,
        quick=job.quick,
    )


COMPARISONS = tuple(map(compare, JOBS))
