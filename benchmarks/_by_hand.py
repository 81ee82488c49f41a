"""The same step as an expert would write it in plain JAX, without mlox.

One function per method: (slope of the lower's cost, lower, upper, v) -> the implicit
part of the hypergradient and a report, with the gap: the value of the pairing, which is
how far the lower's answer is from solved. All share one linearization of the slope.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _jobs import Job
from flax.training.train_state import TrainState

import mlox

PyTree = Any
Metrics = dict[str, jax.Array]
Cost = Callable[[PyTree, PyTree], jax.Array]
Product = Callable[[PyTree], PyTree]


def state(job: Job) -> dict[str, PyTree]:
    """Return the initial state, in fresh buffers."""
    return jax.tree.map(
        lambda x: jnp.array(x, copy=True),
        {
            "lower": job.lower,
            "upper": job.upper,
            "lower_opt": job.lower_tx.init(job.lower),
            "upper_opt": job.upper_tx.init(job.upper),
        },
    )


def train_states(job: Job) -> dict[str, TrainState]:
    """Return the initial state as Flax's TrainStates, which count their steps."""
    made = {
        name: TrainState.create(apply_fn=None, params=params, tx=tx)
        for name, params, tx in (
            ("lower", job.lower, job.lower_tx),
            ("upper", job.upper, job.upper_tx),
        )
    }
    return jax.tree.map(lambda x: jnp.array(x, copy=True), made)


def train_state_step(
    job: Job, *, losses: bool = True
) -> Callable[[PyTree, PyTree], tuple[PyTree, Metrics]]:
    """Return the step on TrainStates."""
    plain = step(job, losses=losses)

    def wrapped(
        state: dict[str, TrainState], batches: PyTree
    ) -> tuple[dict[str, TrainState], Metrics]:
        opened = {n: s.params for n, s in state.items()}
        opened |= {f"{n}_opt": s.opt_state for n, s in state.items()}
        after, metrics = plain(opened, batches)
        return {
            n: s.replace(params=after[n], opt_state=after[f"{n}_opt"], step=s.step + 1)
            for n, s in state.items()
        }, metrics

    return wrapped


def step(
    job: Job, *, losses: bool = True
) -> Callable[[PyTree, PyTree], tuple[PyTree, Metrics]]:
    """Return the step: unrolled steps of the lower problem, then one of the upper.

    `losses` says whether those of the lower are returned, and evaluated, and the gap.
    """

    def lower_loss(
        lower: PyTree, upper: PyTree, batch: PyTree
    ) -> tuple[jax.Array, Metrics]:
        found = job.lower_loss(lower, upper, batch)
        return found["loss"], found

    def upper_loss(
        lower: PyTree, upper: PyTree, batch: PyTree
    ) -> tuple[jax.Array, Metrics]:
        found = job.upper_loss(lower, upper, batch)
        return found["loss"], found

    def step(state: PyTree, batches: PyTree) -> tuple[PyTree, Metrics]:
        upper = state["upper"]

        def descend(carry: PyTree, batch: PyTree) -> tuple[PyTree, Metrics]:
            lower, opt = carry
            grads, metrics = jax.grad(lower_loss, has_aux=True)(lower, upper, batch)
            updates, opt = job.lower_tx.update(grads, opt, lower)
            after = optax.apply_updates(lower, updates), opt
            return after, metrics if losses else {}

        (lower, lower_opt), lower_metrics = _scan(
            job, descend, (state["lower"], state["lower_opt"]), batches["lower"]
        )
        last = jax.tree.map(lambda x: x[-1], batches["lower"])
        batch = jax.tree.map(lambda x: x[0], batches["upper"])
        (v, direct), metrics = jax.grad(upper_loss, (0, 1), has_aux=True)(
            lower, upper, batch
        )
        implicit, report = _METHODS[type(_solver(job))](
            job, lambda lower, upper: lower_loss(lower, upper, last)[0], lower, upper, v
        )
        if not losses:
            del report["gap"]
        grads = jax.tree.map(jnp.subtract, direct, implicit)
        updates, upper_opt = job.upper_tx.update(grads, state["upper_opt"], upper)
        after = {
            "lower": lower,
            "upper": optax.apply_updates(upper, updates),
            "lower_opt": lower_opt,
            "upper_opt": upper_opt,
        }
        upper_metrics = {**metrics, **{f"lower/{k}": x for k, x in report.items()}}
        return after, {
            **{f"lower/{key}": x for key, x in lower_metrics.items()},
            **{f"upper/{key}": x[None] for key, x in upper_metrics.items()},
        }

    return step


def _darts(
    job: Job, cost: Cost, lower: PyTree, upper: PyTree, v: PyTree
) -> tuple[PyTree, Metrics]:
    size = job.method.epsilon / optax.global_norm(v)
    slope = jax.value_and_grad(cost, 1)
    up = slope(jax.tree.map(lambda y, d: y + size * d, lower, v), upper)
    down = slope(jax.tree.map(lambda y, d: y - size * d, lower, v), upper)
    gap, implicit = jax.tree.map(lambda a, b: (a - b) / (2 * size), up, down)
    return implicit, {"gap": gap}


def _neumann(
    job: Job, cost: Cost, lower: PyTree, upper: PyTree, v: PyTree
) -> tuple[PyTree, Metrics]:
    product = jax.linearize(lambda y: jax.grad(cost)(y, upper), lower)[1]
    lam, residual = neumann(job, product, v)
    gap, implicit = _cross(cost, lower, upper, lam)
    return implicit, _report(residual, _solver(job).iterations, gap)


def neumann(job: Job, product: Product, v: PyTree) -> tuple[PyTree, jax.Array]:
    """Return the truncated Neumann series of the inverse, and its residual."""
    solver = _solver(job)

    def extend(_: Any, carry: PyTree) -> PyTree:
        total, term = carry
        term = jax.tree.map(lambda t, h: t - solver.step * h, term, product(term))
        return jax.tree.map(jnp.add, total, term), term

    total, term = _loop(job, solver.iterations, extend, (v, v))
    lam = jax.tree.map(lambda t: solver.step * t, total)
    return lam, optax.global_norm(term) / optax.global_norm(v)


def _cg(
    job: Job, cost: Cost, lower: PyTree, upper: PyTree, v: PyTree
) -> tuple[PyTree, Metrics]:
    solver = _solver(job)
    product = jax.linearize(lambda y: jax.grad(cost)(y, upper), lower)[1]

    def iterate(_: Any, carry: PyTree) -> PyTree:
        x, r, p, rr = carry
        product_p = product(p)
        if solver.damping:
            product_p = _plus(product_p, solver.damping, p)
        alpha = rr / optax.tree.vdot(p, product_p)
        x, r = _plus(x, alpha, p), _plus(r, -alpha, product_p)
        after = optax.tree.vdot(r, r)
        return x, r, _plus(r, after / rr, p), after

    zero = jax.tree.map(jnp.zeros_like, v)
    vv = optax.tree.vdot(v, v)
    lam, _, _, rr = _loop(job, solver.iterations, iterate, (zero, v, v, vv))
    gap, implicit = _cross(cost, lower, upper, lam)
    return implicit, _report(jnp.sqrt(rr / vv), solver.iterations, gap)


def _cross(
    cost: Cost, lower: PyTree, upper: PyTree, lam: PyTree
) -> tuple[jax.Array, PyTree]:
    """Return <lam, d cost / d lower> and its slope at upper, reverse over forward."""
    return jax.value_and_grad(
        lambda upper: jax.jvp(lambda y: cost(y, upper), (lower,), (lam,))[1]
    )(upper)


def _scan(
    job: Job, body: Callable[[PyTree, PyTree], Any], carry: PyTree, xs: PyTree
) -> tuple[PyTree, PyTree]:
    """Scan, or write the loop out (a scan of length 1 stays a loop if unrolled)."""
    if job.loops:
        return jax.lax.scan(body, carry, xs)
    rows = []
    for i in range(job.unroll):
        carry, row = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
        rows.append(row)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *rows)


def _loop(
    job: Job, count: int, body: Callable[[Any, PyTree], PyTree], carry: PyTree
) -> PyTree:
    if job.loops:
        return jax.lax.fori_loop(0, count, body, carry)
    for i in range(count):
        carry = body(i, carry)
    return carry


def _plus(x: PyTree, scale: jax.Array | float, y: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a + scale * b, x, y)


def _report(residual: jax.Array, iterations: int, gap: jax.Array) -> Metrics:
    return {"residual": residual, "iterations": jnp.int32(iterations), "gap": gap}


def _solver(job: Job) -> Any:
    return job.method.solver if isinstance(job.method, mlox.Implicit) else job.method


_METHODS = {
    mlox.FiniteDifference: _darts,
    mlox.Neumann: _neumann,
    mlox.CG: _cg,
}
