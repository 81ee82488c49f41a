"""Curves of runs: what is measured where they have been."""

from __future__ import annotations

from typing import Any

import jobs
import numpy as np
import runs


def curves_of(job: jobs.Job, name: str, found: list[runs.Curve]) -> list[Any]:
    """Measure runs of a method; all seeds at once, each point from the one before."""
    guesses = np.stack([job.y] * len(found))
    values, norms = [], []
    for place in range(len(found[0].evaluations)):
        xs = np.stack([curve.x[place] for curve in found])
        value, norm, guesses = runs.measure(job, xs, guesses)
        values.append(value)
        norms.append(norm)
    return [
        {
            "method": name,
            "seed": seed,
            "evaluations": curve.evaluations.tolist(),
            "seconds": curve.seconds.tolist(),
            "value": [float(value[seed]) for value in values],
            "norm": [float(norm[seed]) for norm in norms],
        }
        for seed, curve in enumerate(found)
    ]


def summary(curves: list[Any]) -> str:
    """Return the medians at the end of runs."""
    last = {
        key: float(np.median([c[key][-1] for c in curves]))
        for key in ("seconds", "value", "norm")
    }
    return "  ".join(f"{key} {value:.4g}" for key, value in last.items())
