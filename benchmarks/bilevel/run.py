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
import curves
import jobs
import results
import runs
import single_loop
import tune
from programs import Method

METHODS: dict[str, Method] = {**by_mlox.METHODS, **single_loop.METHODS}
QUICK = ("Implicit(CG)", "SOBA", "SABA")


def choose(job: jobs.Job, name: str, folder: Path) -> tune.Setting:
    """Tune a method, or take what was chosen on another job."""
    other = tune.TUNED_ON.get(job.name)
    known = results.read(other, folder)["settings"] if other else {}
    if name in known:
        return tune.Setting(**known[name])
    return tune.tune(job, METHODS[name])


def run(job: jobs.Job, name: str, setting: tune.Setting, seeds: int) -> list[Any]:
    """Run a method with its setting; return a curve for each seed."""
    program = METHODS[name].make(job, setting.step, setting.option)
    runner = runs.Runner(job, program, job.budget)
    found = [runner.run(setting.rates, seed) for seed in range(seeds)]
    return curves.curves_of(job, name, found)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = {**jobs.JOBS, **jobs.LARGE}
    parser.add_argument("--jobs", nargs="+", choices=known, default=list(jobs.JOBS))
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one small job, seconds")
    parser.add_argument("--missing", action="store_true", help="keep what is there")
    parser.add_argument("--results", type=Path, default=results.FOLDER)
    options = parser.parse_args()
    if options.quick and options.results == results.FOLDER:
        parser.error("--quick needs a folder of its own: --results FOLDER")
    chosen, methods, seeds = options.jobs, options.methods or METHODS, options.seeds
    if options.quick:
        chosen, methods, seeds = ["ridge"], options.methods or QUICK, 1
    for name in sorted(chosen, key=lambda name: name in tune.TUNED_ON):
        job = known[name](budget=4000) if options.quick else known[name]()
        done = results.read(name, options.results)["settings"]
        for method in methods:
            if options.missing and method in done:
                continue
            setting = choose(job, method, options.results)
            found = run(job, method, setting, seeds)
            chosen_here = {method: setting._asdict()}
            results.update(job, options.results, chosen_here, found, tune.describe(job))
            print(
                f"{name:13} {method:20} {curves.summary(found)}  {setting}", flush=True
            )


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    main()
