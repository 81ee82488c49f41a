"""The same bilevel jobs in mlox and hand-written in plain JAX, side by side.

Run with `python benchmarks/speed.py`; `--only mlp` takes the jobs whose name has that
in it, and `--quick` takes fewer samples. Prints two tables:

- the step: medians of the time per call and per cycle with many cycles in one dispatch
  (both sides in turn in one process; the ratio is the median of the rounds' ratios);
- the program: operations and temporary memory by XLA's own count, the time to trace,
  lower and compile from empty caches, and how far the parameters differ after some
  cycles.

Ratios are mlox over hand-written: below 1, mlox is the faster one.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import _by_hand
import _timing
import jax
import numpy as np
from _jobs import Job, cnn, engine, logistic, mlp

from mlox import CG, FiniteDifference, Implicit, Neumann

TARGETS = {"step": 1.05, "cycle": 1.05, "FLOPs": 1.01, "compile": 1.3}
TARGET_WRITTEN_OUT = 1.1
CYCLES = 50


class Options(NamedTuple):
    """How much is measured.

    Attributes:
        seconds: The time for one comparison of two step times.
        compilations: How often each program is compiled.
    """

    seconds: float = 2.0
    compilations: int = 3


class Side(NamedTuple):
    """One side of a comparison: a step, and a function that makes a fresh state."""

    step: _timing.Step
    state: Callable[[], Any]


class Times(NamedTuple):
    """Medians of seconds on both sides, and of their ratio."""

    mlox: float
    by_hand: float
    ratio: float

    @classmethod
    def of(cls, rounds: np.ndarray) -> Times:
        """Take the medians of rounds, [rounds, 2]."""
        mlox, by_hand = np.median(rounds, axis=0)
        return cls(mlox, by_hand, float(np.median(rounds[:, 0] / rounds[:, 1])))


class Result(NamedTuple):
    """What was measured of a job.

    Attributes:
        job: The job.
        step: Seconds per call.
        cycle: Seconds per cycle, many in one dispatch; None if not measured.
        loops: Seconds per call of mlox with its loops not written out, or None.
        compile: Seconds.
        flops: Operations, mlox over hand-written.
        memory: Temporaries, mlox over hand-written.
        difference: The largest relative difference of parameters.
    """

    job: Job
    step: Times
    cycle: Times | None
    loops: float | None
    compile: Times
    flops: float
    memory: float
    difference: float

    @property
    def name(self) -> str:
        """The job in words."""
        method = self.job.method
        solver = method.solver if isinstance(method, Implicit) else method
        steps = getattr(solver, "iterations", "")
        words = f"{type(solver).__name__} {steps}".strip()
        return f"{self.job.name}, unroll {self.job.unroll}, {words}"


def jobs() -> Iterator[Job]:
    """List the jobs."""
    darts = FiniteDifference()
    for unroll in (1, 10, 100):
        for method in (darts, Implicit(Neumann(3, step=0.1)), Implicit(CG(3))):
            yield logistic(unroll, method)
    # Damped, as the Hessian of a net with rectifiers is not definite.
    for unroll in (1, 5):
        for method in (darts, Implicit(CG(5, damping=1.0))):
            yield mlp(unroll, method)
    for method in (darts, Implicit(CG(3, damping=1.0))):
        yield cnn(5, method)


def measure(job: Job, options: Options) -> Result:
    """Measure a job on both sides."""
    ours = engine(job)
    sides = (
        Side(ours.step, ours.init),
        Side(_by_hand.step(job), lambda: _by_hand.state(job)),
    )
    rounds = [
        [_timing.compiled(side.step, side.state(), job.batches) for side in sides]
        for _ in range(options.compilations)
    ]
    mlox, by_hand = rounds[-1]
    return Result(
        job=job,
        step=_times(job, sides, options.seconds, 1),
        cycle=_times(job, sides, options.seconds, CYCLES) if job.loops else None,
        loops=None if job.loops else _looped(job),
        compile=Times.of(np.array([[c.seconds for c in row] for row in rounds])),
        flops=mlox.flops / by_hand.flops,
        memory=mlox.temporaries / by_hand.temporaries,
        difference=_difference(job, sides),
    )


def _times(job: Job, sides: Sequence[Side], seconds: float, cycles: int) -> Times:
    runs = [
        _timing.repeated(_timing.jitted(side.step, cycles), side.state(), job.batches)
        for side in sides
    ]
    return Times.of(_timing.alternated(runs, seconds) / cycles)


def _looped(job: Job) -> float:
    """Time the step with loops that are not written out."""
    ours = engine(job, unroll_loops=False)
    run = _timing.repeated(ours.compile(), ours.init(), job.batches)
    return statistics.median(run(1) for _ in range(3))


def _difference(job: Job, sides: Sequence[Side], cycles: int = 5) -> float:
    """Compare parameters and metrics after some cycles from the same start."""
    ended = []
    for side in sides:
        step, state = _timing.jitted(side.step), side.state()
        for _ in range(cycles):
            state, metrics = step(state, job.batches)
        ended.append((state, metrics))
    (ours, metrics), (theirs, expected) = ended
    return _timing.difference(
        ({n: problem.params for n, problem in ours.items()}, metrics),
        ({n: theirs[n] for n in ours}, expected),
    )


def report(results: Iterable[Result]) -> str:
    """Format the tables, and list what missed its target."""
    results = list(results)
    steps = _timing.table(
        ["job", "mlox", "by hand", "ratio", f"{CYCLES} in one", "by hand", "ratio", "loops"],
        [
            [r.name, *_row(r.step), *(_row(r.cycle) if r.cycle else "---")]
            + [_timing.duration(r.loops) if r.loops else "-"]
            for r in results
        ],
    )
    programs = _timing.table(
        ["job", "FLOPs", "temporaries", "compile", "by hand", "ratio", "difference"],
        [
            [r.name, f"{r.flops:.4f}", f"{r.memory:.4f}"]
            + [*_row(r.compile), f"{r.difference:.0e}"]
            for r in results
        ],
    )
    return "\n\n".join((steps, programs, *_missed(results)))


def _row(times: Times) -> list[str]:
    seconds = (_timing.duration(times.mlox), _timing.duration(times.by_hand))
    return [*seconds, f"{times.ratio:.3f}"]


def _missed(results: Iterable[Result]) -> Iterator[str]:
    for r in results:
        found = {"step": r.step.ratio, "FLOPs": r.flops, "compile": r.compile.ratio}
        if r.cycle:
            found["cycle"] = r.cycle.ratio
        targets = TARGETS if r.job.loops else {**TARGETS, "step": TARGET_WRITTEN_OUT}
        for what, ratio in found.items():
            if ratio > targets[what]:
                yield f"over {targets[what]}: {r.name}: {what} {ratio:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="take the jobs with this in the name")
    parser.add_argument("--quick", action="store_true", help="take fewer samples")
    arguments = parser.parse_args()
    options = Options(seconds=0.5, compilations=1) if arguments.quick else Options()
    print(f"JAX {jax.__version__}, {jax.default_backend()}", flush=True)
    results = []
    for job in jobs():
        if arguments.only.lower() in job.name.lower():
            results.append(measure(job, options))
            print(results[-1].name, flush=True)
    print(f"\n{report(results)}")


if __name__ == "__main__":
    main()
