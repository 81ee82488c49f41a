"""Run a program of a method on a job, and measure where it has been."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jobs
import numpy as np
from programs import Carry, Program, Rates

POINTS = 12


class Order(NamedTuple):
    """The numbers of the batches of a whole run: each epoch in a new random order."""

    lower: np.ndarray
    upper: np.ndarray


class Curve(NamedTuple):
    """One run: what was spent, and where the upper then was.

    Attributes:
        evaluations: Gradient evaluations so far.
        seconds: Processor seconds so far, without compiling and measuring.
        x: The parameters of the upper at these points.
        y: Those of the lower.
    """

    evaluations: np.ndarray
    seconds: np.ndarray
    x: np.ndarray
    y: np.ndarray


def draw_order(job: jobs.Job, program: Program, steps: int, seed: int) -> Order:
    """Draw the batches of a run."""
    generator = np.random.default_rng(seed)

    def draw(problem: str) -> np.ndarray:
        number, wanted = len(job.blocks(problem)["start"]), program.draws[problem]
        epochs = -(-max(steps * wanted, 1) // number)
        order = [generator.permutation(number) for _ in range(epochs)]
        flat = np.concatenate(order)[: steps * wanted]
        return flat.reshape(steps, wanted).astype(np.int32)

    return Order(draw("lower"), draw("upper"))


def steps_at(program: Program, budget: int, points: int = POINTS) -> np.ndarray:
    """Return the steps after which a run is measured: 0, then ever rarer ones."""
    return steps_at_price(program.evaluations, budget, points)


def steps_at_price(price: int, budget: int, points: int = POINTS) -> np.ndarray:
    """Return the same for a step of some price."""
    most = budget / price
    spread = np.geomspace(max(most / 100, 1), most, points - 1)
    return np.unique(np.concatenate([[0], np.round(spread)]).astype(np.int32))


def make_advance(program: Program) -> Callable[..., Carry]:
    """Return (state, blocks, order, first, last) -> the state after these steps."""

    def advance(
        carry: Carry, blocks: Any, order: Order, first: Any, last: Any
    ) -> Carry:
        def one(step: Any, carry: Carry) -> Carry:
            batches = {
                key: jax.tree.map(lambda rows, i=index[step]: rows[i], blocks[key])
                for key, index in order._asdict().items()
            }
            return program.step(carry, batches)

        return jax.lax.fori_loop(first, last, one, carry)

    return advance


def blocks_of(job: jobs.Job) -> dict[str, Any]:
    """Return the blocks of rows of both problems, on the device."""
    return {key: jax.tree.map(jnp.asarray, job.blocks(key)) for key in job.data}


class Runner:
    """A compiled program, with which several runs are made."""

    def __init__(self, job: jobs.Job, program: Program, budget: int) -> None:
        self.job, self.program = job, program
        self.steps = steps_at(program, budget)
        self.blocks = blocks_of(job)
        self.advance = jax.jit(make_advance(program))

    def run(self, rates: Rates, seed: int) -> Curve:
        """Run once, alone: seconds are those of this program."""
        order = draw_order(self.job, self.program, int(self.steps[-1]), seed)
        order = jax.tree.map(jnp.asarray, order)
        carry = self.program.start(Rates(*map(jnp.float32, rates)))
        seconds, xs, ys = 0.0, [], []
        ends = [np.int32(0), *self.steps]
        for first, last in itertools.pairwise(ends):
            begin = time.process_time()
            carry = self.advance(carry, self.blocks, order, first, last)
            carry = jax.block_until_ready(carry)
            spent = time.process_time() - begin
            seconds = seconds + spent if last else 0.0  # the first call compiles
            xs.append((seconds, np.asarray(self.program.upper(carry))))
            ys.append(np.asarray(self.program.lower(carry)))
        return Curve(
            self.steps * self.program.evaluations,
            np.array([spent for spent, _ in xs]),
            np.stack([x for _, x in xs]),
            np.stack(ys),
        )


def run_many(
    job: jobs.Job, program: Program, many: Rates, budget: int, seeds: Sequence[int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Run with many settings at once; return the last x and y of each seed."""
    steps = int(steps_at(program, budget)[-1])
    advance, blocks = make_advance(program), blocks_of(job)

    def run(rates: Rates, blocks: Any, order: Order) -> tuple[jax.Array, jax.Array]:
        carry = advance(program.start(rates), blocks, order, 0, steps)
        return program.upper(carry), program.lower(carry)

    at_once = jax.jit(jax.vmap(run, in_axes=(0, None, None)))
    rates = jax.tree.map(jnp.float32, many)
    orders = [draw_order(job, program, steps, seed) for seed in seeds]
    found = [at_once(rates, blocks, order) for order in orders]
    return [(np.asarray(x), np.asarray(y)) for x, y in found]


def measure(job: jobs.Job, xs: np.ndarray, ys: np.ndarray) -> tuple[Any, Any, Any]:
    """Return values, norms and answers; NaN where x is not finite.

    Beyond 60 exponentials and sigmoids no longer change.
    """
    fine = np.isfinite(xs.reshape(len(xs), -1)).all(axis=1)
    values, norms = np.full((2, len(xs)), np.nan)
    size = np.abs(ys).reshape(len(ys), -1).max(axis=1)
    near = np.isfinite(size) & (size < 100)
    answers = np.where(near.reshape(-1, *[1] * (ys.ndim - 1)), ys, job.y)
    if fine.any():
        found = job.measure(np.clip(xs[fine], -60, 60), answers[fine])
        values[fine], norms[fine], answers[fine] = found
    return values, norms, answers
