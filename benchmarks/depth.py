"""What exactness costs as a chain grows: levels of 24 unknowns each, in float64.

Run with `python benchmarks/depth.py`. Times the hypergradient of the highest problem
with total coupling, in which every answer below responds to all above it; ratios are to
the chain that is one level shorter. The targets for four levels are at most 10 in run
time and 3 in compile time. Both solvers must find the same gradient.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import _timing
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

SIZE = 24


Links = tuple[list[mlox.Problem], dict[str, list[str]], dict[str, list[str]]]


def links(levels: int, method: Any, size: int = SIZE, unroll_steps: int = 1) -> Links:
    """Make smooth, non-quadratic problems, each leading the one below, and edges."""
    names = [f"level{i}" for i in range(levels)]

    def problem(i: int) -> mlox.Problem:
        # The arrays are in the program: they are its problem, not its data.
        generator = np.random.default_rng(i)
        root = generator.normal(size=(size, size)) / np.sqrt(size)
        matrix = np.eye(size) + 0.2 * root @ root.T
        linear = generator.normal(size=size)
        below, above = (
            0.3 * generator.normal(size=(size, size)) / np.sqrt(size) for _ in "ba"
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
            params=jnp.full(size, 0.1),
            tx=optax.sgd(0.1),
            loss_fn=loss,
            method=method,
            unroll_steps=unroll_steps,
        )

    pairs = list(itertools.pairwise(names))
    return (
        [problem(i) for i in range(levels)],
        {upper: [lower] for lower, upper in pairs},
        {lower: [upper] for lower, upper in pairs},
    )


def measure(method: Any, deepest: int, compilations: int) -> Iterator[Sequence[str]]:
    """Yield a row for each depth; depths are timed in turn."""
    runs, built, sizes = [], [], []
    for levels in range(2, deepest + 1):
        engine = mlox.Engine(*links(levels, method))
        step = _gradient(engine)
        state, batches = engine.init(), dict.fromkeys(engine.names)
        rounds = [_timing.compiled(step, state, batches) for _ in range(compilations)]
        program = rounds[-1].program
        state, grads = program(state, batches)
        sizes.append(float(jnp.linalg.norm(grads)))
        runs.append(_timing.repeated(program, state, batches))
        built.append(statistics.median(found.seconds.wall for found in rounds))
    seconds = np.array(_timing.alternated(runs, 10.0))[:, :, 0]
    ran = np.median(seconds, axis=0)
    for i, levels in enumerate(range(2, deepest + 1)):
        longer = float(np.median(seconds[:, i] / seconds[:, i - 1]))
        yield (
            str(method),
            str(levels),
            _timing.duration(ran[i]),
            f"{longer:.2f}" if i else "",
            _timing.duration(built[i]),
            f"{built[i] / built[i - 1]:.2f}" if i else "",
            f"{sizes[i]:.8f}",
        )


def _gradient(engine: mlox.Engine) -> _timing.Step:
    top = engine.names[-1]
    return lambda state, batches: (
        state,
        engine.hypergradient(state, batches, top)[1],
    )


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description="The cost of exactness with depth")
    parser.add_argument("--deepest", type=int, default=4, help="levels, at least 2")
    parser.add_argument("--compilations", type=int, default=3)
    arguments = parser.parse_args()
    print(f"JAX {jax.__version__}, {jax.default_backend()}\n", flush=True)
    head = ["method", "levels", "run", "ratio", "compile", "ratio", "norm of gradient"]
    rows = [
        row
        for method in (mlox.Implicit(), mlox.Implicit(mlox.GMRES(iterations=200)))
        for row in measure(method, arguments.deepest, arguments.compilations)
    ]
    print(_timing.table(head, rows))


if __name__ == "__main__":
    main()
