"""What exactness costs as a chain of problems grows: levels of 24 unknowns each.

Run with `python benchmarks/depth.py`. The hypergradient of the highest problem, in
float64, with total coupling: every answer below responds to all above it. Prints the
time of one evaluation and the time to compile it for each depth, and the ratio to the
chain that is one level shorter; the target for four levels is at most 10 in run time
and 3 in compile time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import _timing
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

SIZE = 24


def chain(levels: int, method: Any) -> mlox.Engine:
    """Make a chain of smooth, non-quadratic problems, each leading the one below."""
    names = [f"level{i}" for i in range(levels)]

    def problem(i: int) -> mlox.Problem:
        # The arrays are in the program: they are its problem, not its data.
        generator = np.random.default_rng(i)
        root = generator.normal(size=(SIZE, SIZE)) / np.sqrt(SIZE)
        matrix = np.eye(SIZE) + 0.2 * root @ root.T
        linear = generator.normal(size=SIZE)
        below, above = (
            0.3 * generator.normal(size=(SIZE, SIZE)) / np.sqrt(SIZE) for _ in "ba"
        )

        def loss(params: jax.Array, batch: None, ctx: mlox.Context) -> jax.Array:
            del batch
            value = 0.5 * params @ matrix @ params - linear @ params
            value += 0.1 * jnp.sum(params**4)
            if i > 0:
                lower = ctx[names[i - 1]].params
                value += params @ below @ lower + 0.1 * jnp.sum(lower**4)
            if i + 1 < levels:
                upper = ctx[names[i + 1]].params
                value += params @ above @ upper + 0.1 * jnp.sum((params * upper) ** 2)
            return value

        return mlox.Problem.create(
            name=names[i],
            params=jnp.full(SIZE, 0.1),
            tx=optax.sgd(0.1),
            loss_fn=loss,
            method=method,
        )

    pairs = list(zip(names, names[1:], strict=False))
    return mlox.Engine(
        [problem(i) for i in range(levels)],
        u2l={upper: [lower] for lower, upper in pairs},
        l2u={lower: [upper] for lower, upper in pairs},
    )


def measure(levels: int, method: Any, repeats: int) -> tuple[float, float, float]:
    """Return seconds to run and to compile, and the gradient's norm as a check."""
    engine = chain(levels, method)
    state, batches = engine.init(), dict.fromkeys(engine.names)
    top = engine.names[-1]
    compiling = []
    for _ in range(repeats):
        jax.clear_caches()
        start = time.perf_counter()
        function = jax.jit(lambda s, b: engine.hypergradient(s, b, top)[1])
        program = function.lower(state, batches).compile()
        compiling.append(time.perf_counter() - start)
    running = []
    for _ in range(20 * repeats):
        start = time.perf_counter()
        grads = jax.block_until_ready(program(state, batches))
        running.append(time.perf_counter() - start)
    size = float(jnp.linalg.norm(grads))
    return statistics.median(running), statistics.median(compiling), size


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--deepest", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"JAX {jax.__version__}, {jax.default_backend()}\n", flush=True)
    rows = []
    for method in (mlox.Implicit(), mlox.Implicit(mlox.GMRES(iterations=200))):
        before = None
        for levels in range(2, arguments.deepest + 1):
            run, build, size = measure(levels, method, arguments.repeats)
            ratios = (run / before[0], build / before[1]) if before else (None, None)
            run_ratio, build_ratio = (f"{r:.2f}" if r else "-" for r in ratios)
            rows.append(
                [str(method), str(levels), _timing.duration(run), run_ratio]
                + [_timing.duration(build), build_ratio, f"{size:.6g}"]
            )
            before = run, build
    head = ["method", "levels", "run", "ratio", "compile", "ratio", "norm"]
    print(_timing.table(head, rows))


if __name__ == "__main__":
    main()
