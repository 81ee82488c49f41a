"""Tables of mlox's methods beside the original solvers of the bilevel benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np

TITLES = {
    "ridge": "Penalties of a least-squares fit",
    "logistic": "Penalties of a logistic regression",
    "quadratic": "Random quadratics",
    "cleaning_0.5": "Data cleaning, half of the labels random",
    "cleaning_0.7": "Data cleaning, 0.7 of the labels random",
    "cleaning_0.9": "Data cleaning, 0.9 of the labels random",
}

BESIDE = {
    "SOBA": "SOBA (original)",
    "SOBA, simultaneous": "SOBA (original)",
    "SABA": "SABA (original)",
    "AmIGO": "AmIGO (original)",
    "stocBiO": "stocBiO (original)",
    "F2SA": "F2SA (original)",
    "FSLA": "FSLA (original)",
}


def section(all_found: list[dict[str, Any]]) -> str:
    """Render the part of the page of results that is about this benchmark."""
    both = [found for found in all_found if has_originals(found)]
    machines = sorted({f"{found['machine']}, {found['date']}" for found in both})
    return f"""\
## The bilevel benchmark

`python benchmarks/bilevel/run.py`; {"; ".join(machines)}.

The public benchmark's own solvers beside the same methods in mlox, tuned alike, on the
same data and costs. "0.9 in 0.5" means 0.9 times the original's norm of the gradient of
the value function at the end of the budget, and 0.5 times its processor time for an
evaluation. All methods, the settings and the curves are on
[a page of their own](../docs/bilevel_benchmark.md).

{beside_originals(both)}
"""


def has_originals(found: dict[str, Any]) -> bool:
    """Return whether a job was run by original solvers, too."""
    return any("(original)" in method for method in found["settings"])


def gather(found: dict[str, Any], method: str, key: str) -> np.ndarray:
    """Return a quantity of all seeds of a method, [seeds, points]."""
    curves = [c[key] for c in found["curves"] if c["method"] == method]
    return np.array(curves, dtype=float)


def quantiles(values: np.ndarray) -> np.ndarray:
    """Return quartiles and median over seeds; what is not finite counts as infinite."""
    filled = np.where(np.isfinite(values), values, np.inf)
    return np.quantile(filled, [0.25, 0.5, 0.75], axis=0, method="nearest")


def median_at_end(found: dict[str, Any], method: str, key: str) -> float:
    """Return the median at the end of the runs of a method."""
    return float(quantiles(gather(found, method, key))[1, -1])


def beside_originals(all_found: list[dict[str, Any]]) -> str:
    """Return the table of norms and seconds as parts of those of the originals."""
    rows = []
    for method, original in BESIDE.items():
        cells = []
        for found in all_found:
            if not {method, original} <= found["settings"].keys():
                cells.append("")
                continue
            norm, seconds, spent = (
                median_at_end(found, method, key) / median_at_end(found, original, key)
                for key in ("norm", "seconds", "evaluations")
            )
            cells.append(f"{norm:.2f} in {seconds / spent:.2f}")
        if any(cells):
            rows.append(f"| {method} | {' | '.join(cells)} |")
    titles = " | ".join(TITLES[found["job"]].lower() for found in all_found)
    line = "---|" * (1 + len(all_found))
    return "\n".join([f"| norm in time | {titles} |", f"|{line}", *rows])
