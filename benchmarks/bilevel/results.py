"""Files of results: one for each job, small enough to be kept with the programs.

{"job", "machine", "versions", "date", "sizes", "tuned", "settings": {method: {...}},
 "curves": [{"method", "seed", "evaluations", "seconds", "value", "norm"}, ...]}
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jobs
import numpy as np

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("mlox", "jax", "jaxlib", "optax", "numpy", "benchopt")


def path_of(job: str, folder: Path) -> Path:
    """Return the file of a job."""
    return folder / f"{job}.json"


def read(job: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Return the results of a job; without any where there is no file."""
    path = path_of(job, folder)
    if path.exists():
        return json.loads(path.read_text())
    return {"job": job, "settings": {}, "curves": []}


def update(
    job: jobs.Job,
    folder: Path,
    settings: dict[str, Any],
    curves: Iterable[dict[str, Any]],
    tuned: dict[str, Any],
) -> None:
    """Write results of some methods; those of others, and their order, stay."""
    old = read(job.name, folder)
    # No machine's name: what it is, not whose.
    found = {
        "job": job.name,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {**old.get("versions", {}), **_versions()},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "sizes": jobs.describe(job),
        "tuned": tuned,
        "settings": {**old["settings"], **settings},
        "curves": [c for c in old["curves"] if c["method"] not in settings],
    }
    found["curves"] += [_rounded(curve) for curve in curves]
    lines = json.dumps({**found, "curves": []}, indent=1).removesuffix("[]\n}")
    each = ",\n".join(json.dumps(c, separators=(",", ":")) for c in found["curves"])
    folder.mkdir(parents=True, exist_ok=True)
    path_of(job.name, folder).write_text(f"{lines}[\n{each}\n]}}\n")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _rounded(curve: dict[str, Any]) -> dict[str, Any]:
    """Keep four digits; what is not finite is null."""

    def four(value: float) -> float | None:
        return float(f"{value:.4g}") if np.isfinite(value) else None

    return {
        key: [four(v) for v in value] if key in ("seconds", "value", "norm") else value
        for key, value in curve.items()
    }
