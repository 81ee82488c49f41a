"""Resident memory of long runs, and the same bits twice.

python benchmarks/memory.py

Every run is a process of its own: a loop by hand in JAX, and runs of mlox with more and
more of what a run may do. The history, which a run returns, is counted apart.

Orbax writes in threads of its own, and glibc gives threads heaps of their own, whose
free parts count as resident. The last run has one heap for all: what grows there is
held.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import _timing
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox
from tests.kill import job

EVERY = 100
BATCH = 4
SAVES = "mlox, and checkpoints"
KINDS = ("by hand", "mlox", "mlox, validation and logs", SAVES)
ONE_HEAP = "the same, one heap"


class Sample(NamedTuple):
    """Resident memory after some cycles."""

    cycle: int
    resident: int


class Meter:
    """A logger that measures memory at intervals, and keeps no metrics."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.samples: list[Sample] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Measure, at intervals."""
        del metrics
        if step % self.every == 0:
            self.samples.append(Sample(step, resident()))

    def close(self) -> None:
        """Nothing is open."""


def resident() -> int:
    """Return the resident memory of this process, without what can be collected."""
    gc.collect()
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def by_hand(cycles: int, meter: Meter) -> dict[str, Any]:
    """Make as many steps in plain JAX: inner, outer, and means at log points."""
    tx = optax.adam(0.05)

    def loss(w: jax.Array, log_weight: jax.Array, batch: Any) -> jax.Array:
        error = jnp.tanh(batch["x"] @ w - batch["y"])
        return jnp.mean(error**2) + jnp.exp(log_weight) * jnp.sum(w**2)

    @jax.jit
    def step(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        (w, inner), (log_weight, outer) = state
        value, slope = jax.value_and_grad(loss)(w, log_weight, batch)
        update, inner = tx.update(slope, inner)
        w = w + update
        slope = jax.grad(loss, argnums=1)(w, log_weight, batch)
        update, outer = tx.update(slope, outer)
        return ((w, inner), (log_weight + update, outer)), value

    w, log_weight = jnp.full(2, 0.1), jnp.array(-1.0)
    state = (w, tx.init(w)), (log_weight, tx.init(log_weight))
    draw = np.random.default_rng(0)
    for cycle in range(1, cycles + 1):
        rows = draw.choice(32, BATCH, replace=False)
        state, value = step(state, {k: v[rows] for k, v in job.DATA.items()})
        if cycle % EVERY == 0:
            meter.log(cycle, {"loss": float(value)})
    return {}


def with_mlox(kind: str, cycles: int, meter: Meter) -> dict[str, Any]:
    """Make a run of mlox."""
    engine, options = job.engine(), {}
    with tempfile.TemporaryDirectory() as folder:
        if kind != "mlox":
            options |= {"validation": job.score, "logdir": f"{folder}/logs"}
            meters = [meter, mlox.csv_logger(f"{folder}/table.csv")]
        else:
            meters = [meter]
        if kind == SAVES:
            best = {"keep": 2, "best": "validation/error"}
            options["checkpoint"] = mlox.Checkpoint(f"{folder}/saved", EVERY, **best)
        data = {
            "inner": mlox.shuffled(job.DATA, BATCH, seed=1),
            "outer": job.BATCHES,
        }
        state, history = engine.run(
            engine.init(),
            data,
            cycles,
            log_every=EVERY,
            loggers=meters,
            progress=False,
            **options,
        )
    return {"history": history_bytes(history), "sums": job.checksums((state, history))}


def history_bytes(history: Mapping[str, np.ndarray]) -> int:
    """Return what the records of a run take until they become columns."""
    scalar = sys.getsizeof(np.asarray(0.5))
    records, total = ("cycle", "validation/cycle"), 0
    for first in (name for name in records if name in history):
        prefix = first.removesuffix("cycle")
        names = [n for n in history if n.startswith(prefix) and "valid" in n]
        if not prefix:
            names = [n for n in history if not n.startswith("validation/")]
        one = sys.getsizeof(dict.fromkeys(names)) + scalar * len(names)
        total += one * len(history[first])
    return total


def measured(kind: str, cycles: int, **environment: str) -> dict[str, Any]:
    """Make a run in a process of its own, and return what it reports."""
    process = subprocess.run(
        [sys.executable, __file__, "--cycles", str(cycles), "--one", kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    )
    return json.loads(process.stdout.splitlines()[-1])


def slope(samples: list[list[int]]) -> float:
    """Return the bytes per cycle of the last half, by least squares."""
    cycles, bytes_ = np.array(samples[len(samples) // 2 :], float).T
    return float(np.polyfit(cycles, bytes_, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of long runs, and their bits")
    parser.add_argument("--cycles", type=int, default=20_000)
    parser.add_argument("--one", choices=KINDS, help="make one run, and report JSON")
    given = parser.parse_args()
    if given.one is not None:
        meter = Meter(max(EVERY, given.cycles // 40 // EVERY * EVERY))
        if given.one == "by hand":
            report = by_hand(given.cycles, meter)
        else:
            report = with_mlox(given.one, given.cycles, meter)
        print(json.dumps({**report, "samples": meter.samples}))
        return
    reports = {kind: measured(kind, given.cycles) for kind in KINDS}
    reports[ONE_HEAP] = measured(SAVES, given.cycles, MALLOC_ARENA_MAX="1")
    samples = reports["by hand"]["samples"]
    shown = [cycle for cycle, _ in samples][len(samples) // 10 - 1 :: 9]
    head = ["run", *(f"at {cycle}" for cycle in shown), "growth", "history", "else"]
    print(_timing.table(head, [row(*item, shown) for item in reports.items()]))
    held, size = grown(reports[ONE_HEAP]), samples[-1][1]
    part = 1e6 * held / size
    flat = part < 0.01
    print(
        f"\nheld: {held:.1f} B/cycle, {part:.1%} of what is resident in a million",
        end="",
    )
    print(f" cycles: {'flat' if flat else 'NOT flat'}")
    same = reports[ONE_HEAP]["sums"] == reports[SAVES]["sums"]
    print(f"two runs with the same seeds: {'the same' if same else 'OTHER'} bits")
    sys.exit(not (flat and same))


def grown(report: Mapping[str, Any]) -> float:
    """Return the growth of a run in bytes per cycle, without its history."""
    cycles = report["samples"][-1][0]
    return slope(report["samples"]) - report.get("history", 0) / cycles


def row(kind: str, report: Mapping[str, Any], shown: list[int]) -> list[str]:
    """Format what was measured of a run."""
    at, all_of_it = dict(report["samples"]), slope(report["samples"])
    sizes = [f"{at[cycle] / 2**20:.2f} MiB" for cycle in shown]
    parts = (all_of_it, all_of_it - grown(report), grown(report))
    return [kind, *sizes, *(f"{part:.1f} B/cycle" for part in parts)]


if __name__ == "__main__":
    main()
