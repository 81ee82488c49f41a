"""What an iteration of a solver costs, in gradients of the loss.

    python benchmarks/solvers.py [rows of the batch]

Times are those of the processor, the least of several runs that take turns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import mlox

WIDTHS = (64, 256, 256, 64)
ITERATIONS = (5, 10, 20)
RUNS = 9
SOLVERS: dict[str, Callable[[int], mlox.Solver]] = {
    "CG": mlox.CG,
    "MINRES": mlox.MINRES,
    "GMRES": mlox.GMRES,
}


def make_loss(rows: int) -> tuple[Callable[[Any], jax.Array], Any]:
    """Return the loss of a network of 99,000 parameters, and parameters."""
    keys = jax.random.split(jax.random.key(0), len(WIDTHS) + 1)
    shapes = zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=False)
    params = [jax.random.normal(key, (m, n)) / m**0.5 for key, m, n in shapes]
    x = jax.random.normal(keys[-2], (rows, WIDTHS[0]))
    y = jax.random.normal(keys[-1], (rows, WIDTHS[-1]))

    def loss(params: Any) -> jax.Array:
        hidden = x
        for weights in params[:-1]:
            hidden = jnp.tanh(hidden @ weights)
        decay = sum(jnp.sum(weights**2) for weights in params)
        return jnp.mean((hidden @ params[-1] - y) ** 2) + 0.01 * decay

    return loss, params


def main(rows: int) -> None:
    """Print a table."""
    loss, params = make_loss(rows)
    gradient = jax.grad(loss)

    def solve(solver: mlox.Solver) -> Callable[[Any], Any]:
        def solution(params: Any) -> Any:
            product = jax.linearize(gradient, params)[1]
            return mlox.linear_solve(solver, product, params, symmetric=True)[0]

        return solution

    programs = {("gradient", 1): gradient} | {
        (name, k): solve(make(k)) for name, make in SOLVERS.items() for k in ITERATIONS
    }
    compiled = {
        key: jax.jit(function).lower(params).compile()
        for key, function in programs.items()
    }
    least = dict.fromkeys(compiled, float("inf"))
    for _ in range(RUNS):
        for key, program in compiled.items():
            begin = time.process_time()
            jax.block_until_ready(program(params))
            least[key] = min(least[key], time.process_time() - begin)
    unit = least["gradient", 1]
    print(f"{rows} rows; a gradient takes {unit * 1e3:.2f} ms")
    for name in SOLVERS:
        costs = "  ".join(f"{k}: {least[name, k] / k / unit:.1f}" for k in ITERATIONS)
        memory: Any = compiled[name, ITERATIONS[-1]].memory_analysis()
        size = memory.temp_size_in_bytes / 2**20
        print(f"{name:7} gradients an iteration {costs}   {size:.1f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 128)
