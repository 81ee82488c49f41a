"""The public bilevel benchmark's jobs, with the methods of mlox.

    python benchmarks/bilevel/run.py                      # all jobs and methods
    python benchmarks/bilevel/run.py --jobs ridge --methods SOBA SABA
    python benchmarks/bilevel/run.py --quick              # one small job, seconds

Every method is tuned by the same random search, then run with five seeds; the value
function and the norm of its gradient are computed exactly along the way. Writes
results/<job>.json. Data cleaning takes Fashion-MNIST from the folder MLOX_DATA.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import by_mlox
import jobs
import numpy as np
import results
import runs
import single_loop
import tune
from programs import Method

METHODS: dict[str, Method] = {**by_mlox.METHODS, **single_loop.METHODS}
QUICK = ("Implicit(CG)", "SOBA", "SABA")
# Settings of the three data cleanings are chosen on one of them.
TUNED_ON = {"cleaning_0.5": "cleaning_0.7", "cleaning_0.9": "cleaning_0.7"}


def choose(job: jobs.Job, name: str, folder: Path) -> tune.Setting:
    """Tune a method, or take what was chosen on another job."""
    other = TUNED_ON.get(job.name)
    known = results.read(other, folder)["settings"] if other else {}
    if name in known:
        return tune.Setting(**known[name])
    return tune.tune(job, METHODS[name])


def run(job: jobs.Job, name: str, setting: tune.Setting, seeds: int) -> list[Any]:
    """Run a method with its setting; return a curve for each seed."""
    program = METHODS[name].make(job, setting.step, setting.option)
    runner = runs.Runner(job, program, job.budget)
    found = [runner.run(setting.rates, seed) for seed in range(seeds)]
    return curves_of(job, name, found)


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


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = {**jobs.JOBS, **jobs.LARGE}
    parser.add_argument("--jobs", nargs="+", choices=known, default=list(jobs.JOBS))
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one small job, seconds")
    parser.add_argument("--results", type=Path, default=results.FOLDER)
    options = parser.parse_args()
    if options.quick and options.results == results.FOLDER:
        parser.error("--quick needs a folder of its own: --results FOLDER")
    chosen, methods, seeds = options.jobs, options.methods or METHODS, options.seeds
    if options.quick:
        chosen, methods, seeds = ["ridge"], options.methods or QUICK, 1
    for name in sorted(chosen, key=lambda name: name in TUNED_ON):
        job = known[name](budget=4000) if options.quick else known[name]()
        for method in methods:
            setting = choose(job, method, options.results)
            curves = run(job, method, setting, seeds)
            tuned = {
                "settings": tune.SETTINGS,
                "on": TUNED_ON.get(job.name, job.name),
                "by": "least value function at the end",
                "seeds": tune.SEEDS,
            }
            chosen_here = {method: setting._asdict()}
            results.update(job, options.results, chosen_here, curves, tuned)
            print(f"{name:13} {method:20} {summary(curves)}  {setting}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    main()
