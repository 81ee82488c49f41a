"""How many copies of large parameters a run holds at its peak.

python benchmarks/copies.py

A problem with Adam has three arrays of the size of its parameters: these, and two
moments. Each run is a process of its own; its peak of resident memory, without what
the process had before, is divided by the size of the parameters. A loop by hand comes
first.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import _timing
import jax
import jax.numpy as jnp
import optax

import mlox

CYCLES = 8
BATCH = [jnp.float32(0.5)]


def loss(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.mean((w * x - 1) ** 2)


def by_hand(size: int, donate: bool) -> Any:
    """Make as many steps of Adam in plain JAX."""
    tx = optax.adam(1e-3)

    def step(w: Any, opt_state: Any, x: Any) -> Any:
        value, slope = jax.value_and_grad(loss)(w, x)
        update, opt_state = tx.update(slope, opt_state)
        return optax.apply_updates(w, update), opt_state, value

    compiled = jax.jit(step, donate_argnums=(0, 1) if donate else ())
    w = jnp.ones(size)
    opt_state = tx.init(w)
    for _ in range(CYCLES):
        w, opt_state, value = compiled(w, opt_state, BATCH[0])
        jax.block_until_ready(value)
    return w, opt_state


def with_mlox(size: int, donate: bool, held: bool) -> Any:
    """Make a run of mlox; the first state is held by the caller, or by nobody else."""
    problem = mlox.Problem.create(
        name="x",
        params=jnp.ones(size),
        tx=optax.adam(1e-3),
        loss_fn=lambda params, batch, ctx: loss(params, batch),
    )
    engine = mlox.Engine([problem])
    if held:
        state = engine.init()
        return state, engine.run(
            state, {"x": BATCH}, CYCLES, log_every=4, loggers=(), donate=donate
        )
    return engine.run(
        engine.init(), {"x": BATCH}, CYCLES, log_every=4, loggers=(), donate=donate
    )


def run(kind: str, size: int) -> Any:
    """Run one kind at a size."""
    donate = "donated" in kind
    if kind.startswith("by hand"):
        return by_hand(size, donate)
    return with_mlox(size, donate, "held" in kind)


KINDS = (
    "by hand",
    "by hand, donated",
    "mlox",
    "mlox, donated",
    "mlox, the first state held",
    "mlox, donated, the first state held",
)


def resident(which: str) -> int:
    """Return the resident memory of this process: "VmRSS" now, "VmHWM" at its peak."""
    status = pathlib.Path("/proc/self/status").read_text()
    found = re.search(rf"{which}:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def measured(kind: str, size: int) -> float:
    """Run a kind in a process of its own; return its copies."""
    process = subprocess.run(
        [sys.executable, __file__, "--size", str(size), "--one", kind],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    return float(process.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="Copies of large parameters")
    parser.add_argument("--size", type=int, default=30_000_000, help="parameters")
    parser.add_argument("--one", choices=KINDS, help="run one kind")
    given = parser.parse_args()
    if given.one is None:
        rows = [(kind, f"{measured(kind, given.size):.1f}") for kind in KINDS]
        print(_timing.table(["run", "copies at the peak"], rows))
        return
    run(given.one, 8)  # what a process loads only once
    before = resident("VmRSS")
    run(given.one, given.size)
    print((resident("VmHWM") - before) / (4 * given.size))


if __name__ == "__main__":
    main()
