"""What `mlox.Engine.run` costs beside a loop of one's own, with batches from the host.

python benchmarks/run_loop.py

Both sides take the same NumPy batches one by one, stack those of a dispatch, make the
same step and add up the metrics on the device, which are fetched at each
log point. They run in turn in one process; ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import _by_hand
import _timing
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _jobs import Job, engine, logistic

import mlox

LOG_POINTS = 5
SINGLE, MANY = 1.5, 1.15  # the largest ratios that we accept
Loop = Callable[[int], Any]


class Case(NamedTuple):
    """A job, the cycles of one dispatch, and the largest ratio for them."""

    job: Job
    cycles: int
    target: float

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.job.name}, unroll {self.job.unroll}"


def cases() -> Iterator[Case]:
    """List what is measured."""
    for unroll in (1, 10):
        job = logistic(unroll, mlox.FiniteDifference())
        # A smaller rate, so that thousands of cycles stay finite.
        job = dataclasses.replace(job, upper_tx=optax.adam(1e-4))
        yield Case(job, 1, SINGLE)
        yield Case(job, 50, MANY)


def host_batches(job: Job) -> dict[str, list[Any]]:
    """Return two different batches for each problem, as NumPy arrays."""
    firsts = jax.tree.map(lambda x: np.asarray(x[0]), job.batches)
    return {
        name: [batch, jax.tree.map(lambda x: x[::-1].copy(), batch)]
        for name, batch in firsts.items()
    }


def by_hand(case: Case) -> Loop:
    """Return the loop that one writes by hand around a compiled step."""
    job, each = case.job, case.cycles
    step, data = _by_hand.step(job), host_batches(job)
    counts = {"lower": job.unroll, "upper": 1}

    def cycle(carry: Any, batches: Any) -> tuple[Any, None]:
        state, sums = carry
        state, metrics = step(state, batches)
        return (state, {n: sums[n] + jnp.mean(m) for n, m in metrics.items()}), None

    @jax.jit
    def dispatch(state: Any, sums: Any, batches: Any) -> tuple[Any, Any]:
        if each == 1:
            return cycle((state, sums), batches)[0]
        return jax.lax.scan(cycle, (state, sums), batches)[0]

    def take(source: Iterator[Any], steps: int) -> Any:
        lead = (steps,) if each == 1 else (each, steps)
        rows = zip(*itertools.islice(source, each * steps), strict=True)
        return tuple(np.stack(row).reshape(*lead, *row[0].shape) for row in rows)

    start = _by_hand.state(job)
    _, shapes = jax.eval_shape(step, start, job.batches)
    zeros = {n: jnp.zeros(()) for n in shapes}

    def loop(cycles: int) -> Any:
        sources = {name: itertools.cycle(series) for name, series in data.items()}
        state, sums, history = start, zeros, []
        every = cycles // LOG_POINTS
        for done in range(each, cycles + 1, each):
            batches = {n: take(sources[n], count) for n, count in counts.items()}
            state, sums = dispatch(state, sums, batches)
            if done % every == 0:
                history.append(
                    {n: float(x) / every for n, x in jax.device_get(sums).items()}
                )
                sums = zeros
        return jax.block_until_ready(state), history

    return loop


def with_mlox(case: Case) -> Loop:
    """Return the same as a run of mlox."""
    ours, data = engine(case.job), host_batches(case.job)

    def loop(cycles: int) -> Any:
        state, history = ours.run(
            ours.init(),
            data,
            cycles,
            log_every=cycles // LOG_POINTS,
            cycles_per_dispatch=case.cycles,
            loggers=(),
        )
        return jax.block_until_ready(state), history

    return loop


def timed(loop: Loop, cycles: int) -> Callable[[int], _timing.Seconds]:
    """Return a function that runs a loop, and says how long it took."""

    def run(times: int) -> _timing.Seconds:
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(times):
            loop(cycles)
        return _timing.Seconds(
            (time.perf_counter() - wall) / times,
            (time.process_time() - processor) / times,
        )

    return run


def measure(case: Case, seconds: float) -> tuple[list[str], float]:
    """Return a row of the table, and the ratio of seconds."""
    sides = (with_mlox(case), by_hand(case))
    ended, expected = (side(10 * case.cycles)[0] for side in sides)
    difference = _timing.difference(
        {n: ended[n].params for n in ("lower", "upper")},
        {n: expected[n] for n in ("lower", "upper")},
    )
    cycles = 50 * case.cycles * max(1, 20 // case.cycles)
    rounds = (
        np.array(_timing.alternated([timed(side, cycles) for side in sides], seconds))
        / cycles
    )
    wall, processor = np.moveaxis(rounds, 2, 0)
    ratio = float(np.median(wall[:, 0] / wall[:, 1]))
    cells = [_timing.duration(x) for x in np.median(wall, axis=0)]
    by_processor = np.median(processor[:, 0] / processor[:, 1])
    row = [case.name, str(case.cycles), *cells, f"{ratio:.2f}", f"{by_processor:.2f}"]
    return [*row, f"{difference:.0e}"], ratio


def main() -> None:
    parser = argparse.ArgumentParser(description="engine.run beside a loop by hand")
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    head = ["job", "cycles per dispatch", "mlox", "by hand", "ratio", "CPU ratio"]
    rows, missed = [], []
    for case in cases():
        row, ratio = measure(case, given.seconds)
        rows.append(row)
        if ratio > case.target:
            missed.append(f"- above {case.target}: {', '.join(row[:2])}: {ratio:.2f}")
    print(_timing.table([*head, "difference"], rows))
    print(*missed, sep="\n")


if __name__ == "__main__":
    main()
