"""jaxopt's `custom_root` on the jobs of implicit.py, with the steps of the lower."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import _by_hand
import jax
import optax
from _jobs import Job
from _side import Given, Side
from jaxopt import implicit_diff, linear_solve
from peers import _steps

import mlox

PyTree = Any


def build(given: Given, settings: _steps.Settings) -> Side:
    """Build the job."""
    del given
    job = _steps.make_job(settings)

    def read(state: PyTree, metrics: PyTree) -> PyTree:
        del metrics
        return {name: state[name] for name in ("lower", "upper")}, None

    start = _by_hand.state(job)
    return _steps.side(make_step(job), start, job.batches, settings, read, "jaxopt")


def make_step(job: Job) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]:
    """Return the step, with the loss of the upper as its only metrics."""

    def lower_loss(lower: PyTree, upper: PyTree, batch: PyTree) -> jax.Array:
        return job.lower_loss(lower, upper, batch)["loss"]

    def slope(lower: PyTree, upper: PyTree, batches: PyTree) -> PyTree:
        last = jax.tree.map(lambda x: x[-1], batches)
        return jax.grad(lower_loss)(lower, upper, last)

    def answer(start: PyTree, upper: PyTree, batches: PyTree) -> tuple[PyTree, PyTree]:
        def descend(carry: PyTree, batch: PyTree) -> tuple[PyTree, None]:
            lower, opt = carry
            grads = jax.grad(lower_loss)(lower, upper, batch)
            updates, opt = job.lower_tx.update(grads, opt, lower)
            return (optax.apply_updates(lower, updates), opt), None

        unroll = 1 if job.loops else job.unroll
        return jax.lax.scan(descend, start, batches, unroll=unroll)[0]

    respond = implicit_diff.custom_root(slope, has_aux=True, solve=_solve(job))(answer)

    def step(state: PyTree, batches: PyTree) -> tuple[PyTree, PyTree]:
        batch = jax.tree.map(lambda x: x[0], batches["upper"])

        def upper_loss(upper: PyTree) -> tuple[jax.Array, PyTree]:
            start = state["lower"], state["lower_opt"]
            lower, opt = respond(start, upper, batches["lower"])
            found = job.upper_loss(lower, upper, batch)
            return found["loss"], (lower, opt, found)

        upper = state["upper"]
        grads, (lower, lower_opt, found) = jax.grad(upper_loss, has_aux=True)(upper)
        updates, upper_opt = job.upper_tx.update(grads, state["upper_opt"], upper)
        after = {
            "lower": lower,
            "upper": optax.apply_updates(upper, updates),
            "lower_opt": lower_opt,
            "upper_opt": upper_opt,
        }
        return after, {f"upper/{key}": x[None] for key, x in found.items()}

    return step


def _solve(job: Job) -> Callable[..., PyTree]:
    """Return jaxopt's solver where it has one, else that of the hand-written step."""
    solver = job.method.solver
    if isinstance(solver, mlox.CG):
        damping = solver.damping or None
        return functools.partial(
            linear_solve.solve_cg, maxiter=solver.iterations, tol=0.0, ridge=damping
        )
    return lambda product, v: _by_hand.neumann(job, product, v)[0]
