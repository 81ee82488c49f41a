"""The same bilevel jobs in mlox and hand-written in plain JAX, side by side.

Run with `python benchmarks/speed.py`; `--only mlp` takes the jobs whose name has that
in it, `--quick` takes fewer samples. Both sides run in turn in one process. Ratios are
mlox over hand-written, medians over the rounds: below 1, mlox is the faster one. The
CPU ratio is that of processor time, which other jobs on the machine disturb less. The
last table leaves out the losses of the lower, on all sides, and compares with jaxopt,
too, if it is installed (`pip install jaxopt`).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import _bare
import _by_hand
import _timing
import jax
import numpy as np
from _jobs import Job, cnn, engine, logistic, mlp

from mlox import CG, FiniteDifference, Implicit, Neumann

# The largest ratios to the hand-written step that we accept.
STEP, WRITTEN_OUT, FLOPS, COMPILE = 1.05, 1.1, 1.01, 1.3
CYCLES = 50


class Options(NamedTuple):
    """How much is measured.

    Attributes:
        seconds: The time for one comparison of two step times.
        compilations: How often each program is compiled.
    """

    seconds: float = 1.5
    compilations: int = 3


class Times(NamedTuple):
    """Medians of a comparison of mlox with the hand-written step.

    Attributes:
        mlox: Seconds by the clock.
        by_hand: Seconds by the clock.
        ratio: Of seconds by the clock, the median of the rounds' ratios.
        processor: The same of processor seconds.
    """

    mlox: float
    by_hand: float
    ratio: float
    processor: float

    @classmethod
    def of(cls, rounds: Sequence[Sequence[_timing.Seconds]], cycles: int = 1) -> Times:
        """Take the medians of rounds of two."""
        wall, processor = np.moveaxis(np.array(rounds), 2, 0) / cycles
        return cls(
            *np.median(wall, axis=0),
            ratio=float(np.median(wall[:, 0] / wall[:, 1])),
            processor=float(np.median(processor[:, 0] / processor[:, 1])),
        )


class Result(NamedTuple):
    """What was measured of a job.

    Attributes:
        job: The job.
        call: One cycle in each call.
        train_state: The same with a hand-written state of TrainStates, if it is small.
        many: Many cycles in each call, for jobs with loops.
        loops: Seconds per call of mlox with loops that it would write out.
        compile: Tracing, lowering and compiling.
        flops: Operations, mlox over hand-written.
        memory: Temporaries, mlox over hand-written.
        difference: The largest relative difference of parameters and metrics.
        bare: The same without the losses of the lower.
    """

    job: Job
    call: Times
    train_state: Times | None
    many: Times | None
    loops: float | None
    compile: Times
    flops: float
    memory: float
    difference: float
    bare: _bare.Bare

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
    sides = [
        _bare.Side(ours.step, ours.init),
        _bare.Side(_by_hand.step(job), lambda: _by_hand.state(job)),
    ]
    rounds = [
        [_timing.compiled(side.step, side.state(), job.batches) for side in sides]
        for _ in range(options.compilations)
    ]
    mlox, by_hand = rounds[-1]
    return Result(
        job=job,
        call=_times(job, sides, (mlox, by_hand), options),
        train_state=_train_state(job, sides[0], mlox, options) if job.tiny else None,
        many=_many(job, sides, options) if job.loops else None,
        loops=None if job.loops else _looped(job),
        compile=Times.of([[found.seconds for found in row] for row in rounds]),
        flops=mlox.flops / by_hand.flops,
        memory=mlox.temporaries / by_hand.temporaries,
        difference=_difference(job, sides, (mlox, by_hand)),
        bare=_bare.measure(job, options.seconds, CYCLES),
    )


def _times(
    job: Job,
    sides: Sequence[_bare.Side],
    programs: Sequence[_timing.Compiled],
    options: Options,
    cycles: int = 1,
) -> Times:
    runs = [
        _timing.repeated(compiled.program, side.state(), job.batches)
        for side, compiled in zip(sides, programs, strict=True)
    ]
    return Times.of(_timing.alternated(runs, options.seconds), cycles)


def _many(job: Job, sides: Sequence[_bare.Side], options: Options) -> Times:
    programs = [
        _timing.compiled(_timing.many(side.step, CYCLES), side.state(), job.batches)
        for side in sides
    ]
    return _times(job, sides, programs, options, CYCLES)


def _train_state(
    job: Job, mlox: _bare.Side, compiled: _timing.Compiled, options: Options
) -> Times:
    """Compare with a hand-written step whose state is of TrainStates, as mlox's is."""
    side = _bare.Side(
        _by_hand.train_state_step(job), lambda: _by_hand.train_states(job)
    )
    program = _timing.compiled(side.step, side.state(), job.batches)
    return _times(job, (mlox, side), (compiled, program), options)


def _looped(job: Job) -> float:
    """Time the step with loops that are not written out."""
    ours = engine(job, unroll_loops=False)
    found = _timing.compiled(ours.step, ours.init(), job.batches)
    run = _timing.repeated(found.program, ours.init(), job.batches)
    return statistics.median(run(1).wall for _ in range(3))


def _difference(
    job: Job,
    sides: Sequence[_bare.Side],
    programs: Sequence[_timing.Compiled],
    cycles: int = 5,
) -> float:
    """Compare parameters and metrics after some cycles from the same start."""
    ended = []
    for side, compiled in zip(sides, programs, strict=True):
        state, metrics = side.state(), None
        for _ in range(cycles):
            state, metrics = compiled.program(state, job.batches)
        ended.append((state, metrics))
    (ours, found), (theirs, expected) = ended
    return _timing.difference(
        (
            {n: problem.params for n, problem in ours.items()},
            {key: found[key] for key in expected},  # by hand there are no gaps
        ),
        ({n: theirs[n] for n in ours}, expected),
    )


def report(results: Sequence[Result]) -> str:
    """Format the tables, and list what missed its target."""
    four = ["mlox", "by hand", "ratio", "CPU ratio"]
    calls = _timing.table(
        ["one cycle per call", *four, "to TrainState", "with loops"],
        [
            (
                r.name,
                *_row(r.call),
                f"{r.train_state.ratio:.2f}" if r.train_state else "",
                _timing.duration(r.loops) if r.loops else "",
            )
            for r in results
        ],
    )
    many = _timing.table(
        [f"{CYCLES} cycles per call", *four],
        [(r.name, *_row(r.many)) for r in results if r.many],
    )
    programs = _timing.table(
        ["compile", *four, "FLOPs", "temporaries", "difference"],
        [
            (
                r.name,
                *_row(r.compile),
                f"{r.flops:.4f}",
                f"{r.memory:.4f}",
                f"{r.difference:.0e}",
            )
            for r in results
        ],
    )
    bare = [(r.name, r.bare) for r in results]
    lines = "\n".join([*_missed(results), *_bare.missed(bare)])
    return "\n\n".join((calls, many, programs, _bare.table(bare), lines))


def _row(times: Times) -> list[str]:
    seconds = (_timing.duration(times.mlox), _timing.duration(times.by_hand))
    return [*seconds, f"{times.ratio:.2f}", f"{times.processor:.2f}"]


def _missed(results: Iterable[Result]) -> Iterator[str]:
    for r in results:
        found = {
            "one cycle per call": (r.call.ratio, STEP if r.job.loops else WRITTEN_OUT),
            "FLOPs": (r.flops, FLOPS),
            "compile": (r.compile.ratio, COMPILE),
        }
        if r.many:
            found[f"{CYCLES} cycles per call"] = (r.many.ratio, STEP)
        for what, (ratio, target) in found.items():
            if ratio > target:
                yield f"- above {target}: {r.name}: {what}: {ratio:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="mlox beside plain JAX")
    parser.add_argument(
        "--only", default="", help="take the jobs with this in the name"
    )
    parser.add_argument("--quick", action="store_true", help="take fewer samples")
    arguments = parser.parse_args()
    options = Options(seconds=0.5, compilations=1) if arguments.quick else Options()
    print(f"JAX {jax.__version__}, {jax.default_backend()}", flush=True)
    ours = engine(first := next(jobs()))
    # What a process loads only once must not count for the side that comes first.
    _timing.compiled(ours.step, ours.init(), first.batches)
    results = []
    for job in jobs():
        if arguments.only.lower() in job.name.lower():
            results.append(measure(job, options))
            print(results[-1].name, flush=True)
    print(f"\n{report(results)}")


if __name__ == "__main__":
    main()
