"""Resident memory of long runs, and the same bits twice.

python benchmarks/memory.py

Every run is a process of its own: a loop by hand in JAX, and runs of mlox with more and
more of what a run may do.
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

import _kill_job
import _timing
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

EVERY = 100
BATCH = 4
ENOUGH = 16.0
KINDS = ("by hand", "mlox", "mlox, validation and logs", "mlox, and checkpoints")


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
        """Take a sample, if one is due."""
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
        state, value = step(state, {k: v[rows] for k, v in _kill_job.DATA.items()})
        if cycle % EVERY == 0:
            meter.log(cycle, {"loss": float(value)})
    return {}


def with_mlox(kind: str, cycles: int, meter: Meter) -> dict[str, Any]:
    """Make a run of mlox."""
    engine, options = _kill_job.engine(), {}
    with tempfile.TemporaryDirectory() as folder:
        if kind != "mlox":
            options |= {"validation": _kill_job.score, "logdir": f"{folder}/logs"}
            meters = [meter, mlox.csv_logger(f"{folder}/table.csv")]
        else:
            meters = [meter]
        if kind == "mlox, and checkpoints":
            best = {"keep": 2, "best": "validation/error"}
            options["checkpoint"] = mlox.Checkpoint(f"{folder}/saved", EVERY, **best)
        data = {
            "inner": mlox.shuffled(_kill_job.DATA, BATCH, seed=1),
            "outer": _kill_job.BATCHES,
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
    return {"history": history_bytes(history), "sums": _kill_job.sums((state, history))}


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


def measured(kind: str, cycles: int) -> dict[str, Any]:
    """Make a run in a process of its own, and return what it reports."""
    process = subprocess.run(
        [sys.executable, __file__, "--cycles", str(cycles), "--one", kind],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
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
    again = measured(KINDS[-1], given.cycles)
    shown = [s[0] for s in reports["by hand"]["samples"]][3::9]
    head = ["run", *(f"at {cycle}" for cycle in shown), "growth", "of it history"]
    table, grown = [], 0.0
    for kind, report in reports.items():
        at = dict(map(tuple, report["samples"]))
        history = report.get("history", 0) / given.cycles
        growth = slope(report["samples"])
        grown = growth - history
        sizes = [f"{at[cycle] / 2**20:.2f} MiB" for cycle in shown]
        table.append([kind, *sizes, f"{growth:.1f} B/cycle", f"{history:.1f} B/cycle"])
    print(_timing.table(head, table))
    flat = grown < ENOUGH
    print(
        f"\nresident memory is {'flat' if flat else 'NOT flat'} ({grown:.1f} B/cycle)"
    )
    same = again["sums"] == reports[KINDS[-1]]["sums"]
    print(f"two runs with the same seeds: {'the same' if same else 'OTHER'} bits")
    sys.exit(not (flat and same))


if __name__ == "__main__":
    main()
