"""mlox beside Betty itself (PyTorch): the same parameters, and the time they take.

    python benchmarks/against_betty.py --setup FOLDER         # makes the environment
    python benchmarks/against_betty.py --betty-python FOLDER/bin/python

Betty runs in an environment of its own, by _betty_side.py. Both sides start from the
same parameters and take the same batches in the same order, on as many cores, with
plain SGD. Exits with status 1 if they differ by more than rounding. _betty_cases.py
says where Betty 0.2.1 errs; there mlox errs like it, and a second table says by how
much that matters. Ratios are Betty over mlox: above 1, mlox is the faster one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any, NamedTuple

import _timing
import jax
import numpy as np
from _betty_cases import STEPS, UNROLL, Case, Setting, cases, settings
from _jobs import engine

PyTree = Any

# Upper steps in a timed run, such runs, and upper steps in one dispatch of mlox.
LENGTH, ROUNDS, DISPATCH = 50, 9, 50
# The largest difference in float32 that passes for rounding.
LARGEST = 1e-4


class Found(NamedTuple):
    """The outcome of one side.

    Attributes:
        params: The leaves of the upper's parameters after all steps.
        seconds: The median time of one upper step; 0 if none was taken.
        about: The libraries and their threads.
    """

    params: list[np.ndarray]
    seconds: float = 0.0
    about: str = ""


def of_mlox(setting: Setting, method: Any, rounds: int, dispatch: int = 1) -> Found:
    """Run a job with mlox; what is timed is `Engine.run`, compiled before."""
    ours = engine(setting.written(method))
    data = {name: _listed(part) for name, part in setting.job.batches.items()}

    def trained(steps: int) -> list[np.ndarray]:
        state, _ = ours.run(
            ours.init(),
            data,
            steps,
            cycles_per_dispatch=min(steps, dispatch),
            loggers=(),
            progress=False,
        )
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state["upper"].params)]

    def seconds() -> float:
        start = time.perf_counter()
        trained(LENGTH)
        return (time.perf_counter() - start) / LENGTH

    params = trained(STEPS)
    if not rounds:
        return Found(params)
    seconds()  # compiles
    return Found(params, statistics.median(seconds() for _ in range(rounds)))


def of_betty(python: Path, setting: Setting, case: Case, rounds: int) -> Found:
    """Run a job with Betty, in a process of its own."""
    told = {
        "job": setting.job.name,
        "config": case.config,
        "unroll": UNROLL,
        **{key: value for key, value in setting._asdict().items() if key != "job"},
    }
    given = {"settings": json.dumps(told), "amounts": (STEPS, rounds, LENGTH)}
    for name, params in (("upper", setting.job.upper), ("lower", setting.job.lower)):
        for i, leaf in enumerate(jax.tree.leaves(params)):
            given[f"{name}_leaf{i}"] = np.asarray(leaf)
        for i, part in enumerate(setting.job.batches[name]):
            given[f"{name}_batch{i}"] = np.asarray(part)
    with tempfile.TemporaryDirectory() as folder:
        there, back = Path(folder, "given.npz"), Path(folder, "found.npz")
        np.savez(there, **given)
        script = Path(__file__).with_name("_betty_side.py")
        subprocess.run([python, script, there, back], check=True)
        found = dict(np.load(back))
    count = len(jax.tree.leaves(setting.job.upper))
    params = [found[f"upper_leaf{i}"] for i in range(count)]
    seconds = float(np.median(found["seconds"])) if rounds else 0.0
    return Found(params, seconds, str(found["about"]))


class Row(NamedTuple):
    """What was found of a case.

    Attributes:
        name: The job and the method.
        params: The largest relative difference of the upper's parameters.
        moves: The same of their ways from the start, which is stricter.
        doubles: That of the ways in float64.
        right: The same for what mlox does where Betty errs, or None.
        seconds: Per upper step: Betty, mlox, mlox with many steps in one dispatch.
        about: Betty's libraries and their threads.
    """

    name: str
    params: float
    moves: float
    doubles: float
    right: float | None
    seconds: tuple[float, float, float]
    about: str


def measure(python: Path, setting: Setting, case: Case) -> Row:
    """Run a case on both sides."""
    start = _leaves(setting.job.upper)
    theirs = of_betty(python, setting, case, ROUNDS)
    ours = of_mlox(setting, case.method, ROUNDS)
    many = of_mlox(setting, case.method, ROUNDS, DISPATCH)
    with jax.enable_x64(True):
        wide = setting.wide()
        expected = of_betty(python, wide, case, 0).params
        found = of_mlox(wide, case.method, 0).params
        right = case.right and of_mlox(wide, case.right, 0).params
    return Row(
        f"{setting.job.name}, {case.name}",
        _timing.difference(ours.params, theirs.params),
        _moved(start, ours.params, theirs.params),
        _moved(start, found, expected),
        _moved(start, right, expected) if right else None,
        (theirs.seconds, ours.seconds, many.seconds),
        theirs.about,
    )


def _moved(
    start: list[np.ndarray], found: list[np.ndarray], expected: list[np.ndarray]
) -> float:
    """Compare the ways from the start, which a small step does not hide."""
    return _timing.difference(
        [x - y for x, y in zip(found, start, strict=True)],
        [x - y for x, y in zip(expected, start, strict=True)],
    )


def _leaves(params: PyTree) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)]


def _listed(batches: PyTree) -> list[PyTree]:
    """Take the batches apart that lie along the leading axis."""
    parts = jax.tree.map(np.asarray, batches)
    count = len(jax.tree.leaves(parts)[0])
    return [jax.tree.map(lambda x, i=i: x[i], parts) for i in range(count)]


def report(rows: list[Row]) -> str:
    """Format the tables."""
    agreement = _timing.table(
        [
            *("job, method", "parameters", "moves", "moves, float64"),
            *("Betty", "mlox", "ratio", f"mlox, {DISPATCH} per dispatch", "ratio"),
        ],
        [
            (
                row.name,
                *(f"{x:.0e}" for x in (row.params, row.moves, row.doubles)),
                _timing.duration(row.seconds[0]),
                _timing.duration(row.seconds[1]),
                f"{row.seconds[0] / row.seconds[1]:.1f}",
                _timing.duration(row.seconds[2]),
                f"{row.seconds[0] / row.seconds[2]:.1f}",
            )
            for row in rows
        ],
    )
    mistakes = _timing.table(
        ["Betty's mistake", "mlox with it", "mlox as it is"],
        [
            (row.name, f"{row.doubles:.0e}", f"{row.right:.2g}")
            for row in rows
            if row.right is not None
        ],
    )
    return f"{agreement}\n\n{mistakes}"


def environment(folder: Path) -> Path:
    """Make an environment with PyTorch and Betty, and return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install"]
    subprocess.run([*install, "torch", "numpy"], check=True)
    # Its requirements name an old Python and old libraries; it runs without them.
    loose = ["--no-deps", "--ignore-requires-python"]
    subprocess.run([*install, *loose, "betty-ml==0.2.1"], check=True)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description="mlox beside Betty")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--betty-python", type=Path, help="Python that has Betty")
    where.add_argument("--setup", type=Path, help="a folder to make such a one in")
    parser.add_argument("--threads", type=int, default=1, help="cores of both sides")
    arguments = parser.parse_args()
    python = arguments.betty_python or environment(arguments.setup)
    # Before JAX starts its threads; Betty's process inherits it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.threads :])
    rows = []
    for setting in settings():
        for case in cases(setting.lower_rate):
            rows.append(measure(python, setting, case))
            print(rows[-1].name, flush=True)
    cores = len(os.sched_getaffinity(0))
    print(f"\nJAX {jax.__version__} ({cores} threads); {rows[0].about}\n")
    print(report(rows))
    return int(max(max(row.params, row.moves) for row in rows) > LARGEST)


if __name__ == "__main__":
    sys.exit(main())
