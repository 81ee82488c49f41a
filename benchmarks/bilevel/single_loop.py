"""Single-loop methods as published: SOBA, and SABA and FSLA, which are not in mlox.

All move y, the multiplier v and x by one step each. With g the lower and f the upper
cost, on one batch each, the directions of SOBA and SABA are

    D_y = g_y,      D_v = g_yy v - f_y,      D_x = f_x - g_xy v,

all at the old point. SABA replaces each of the five terms by an average over a table
of the batches (SAGA), which takes memory: batches times (3 dim y + 2 dim x) numbers.

    Dagreou, Ablin, Vaiter and Moreau, A Framework for Bilevel Optimization that Enables
    Stochastic and Global Variance Reduction Algorithms, NeurIPS 2022 (SOBA, SABA).
    Li, Gu and Huang, A Fully Single Loop Algorithm for Bilevel Optimization without
    Hessian Inverse, AAAI 2022 (FSLA).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jobs
from programs import Batches, Method, Program, Rates


class Point(NamedTuple):
    """Where a method is: the lower's y, the multiplier v and the upper's x."""

    y: jax.Array
    v: jax.Array
    x: jax.Array


class Terms(NamedTuple):
    """The terms of the directions, each from one batch of the lower or the upper."""

    g_y: jax.Array
    g_yy_v: jax.Array
    g_xy_v: jax.Array
    f_y: jax.Array
    f_x: jax.Array


class Row(NamedTuple):
    """A SAGA table of one term: what each batch gave last, and the mean of that.

    The last entry is written a step late: to read after writing needs no copy of the
    table, to write after reading would copy it in each step.
    """

    each: jax.Array
    mean: jax.Array
    last: jax.Array
    place: jax.Array


class State(NamedTuple):
    """The state of a method: the point, the rates, the steps made, and more."""

    point: Point
    rates: Rates
    count: jax.Array
    more: Any


def terms_at(job: jobs.Job, at: Point, lower: Any, upper: Any) -> Terms:
    """Return the terms at a point: one pass gives both products."""

    def slope(y: jax.Array, x: jax.Array) -> jax.Array:
        return jax.grad(job.lower)(y, x, lower)

    g_y, pull = jax.vjp(slope, at.y, at.x)
    f_y, f_x = jax.grad(job.upper, argnums=(0, 1))(at.y, at.x, upper)
    return Terms(g_y, *pull(at.v), f_y, f_x)


def step_along(terms: Terms, at: Point, rates: Rates, count: jax.Array) -> Point:
    """Move all three from one old point."""
    fade = (1.0 + count) ** -rates.decay
    lower, upper = fade * rates.lower, fade * rates.upper
    return Point(
        at.y - lower * terms.g_y,
        at.v - lower * (terms.g_yy_v - terms.f_y),
        at.x - upper * (terms.f_x - terms.g_xy_v),
    )


def average(row: Row, fresh: jax.Array, number: jax.Array) -> tuple[jax.Array, Row]:
    """Return the SAGA estimate, and the table after it: batches have equal weights."""
    each = jax.lax.dynamic_update_index_in_dim(row.each, row.last, row.place, 0)
    change = fresh - jax.lax.dynamic_index_in_dim(each, number, keepdims=False)
    mean = row.mean + change / len(each)
    return change + row.mean, Row(each, mean, fresh, number)


def start_table(job: jobs.Job) -> list[Row]:
    """Return tables of zeros, one of each term."""
    lower, upper = (len(job.blocks(key)["start"]) for key in ("lower", "upper"))
    sizes = [(lower, job.y), (lower, job.y), (lower, job.x), (upper, job.y)]
    return [
        Row(
            jnp.zeros((number, *like.shape), like.dtype),
            jnp.zeros(like.shape, like.dtype),
            jnp.zeros(like.shape, like.dtype),
            jnp.int32(0),
        )
        for number, like in [*sizes, (upper, job.x)]
    ]


def make_soba(job: jobs.Job, step: float = 0, option: Any = None) -> Program:
    """Return SOBA as published: all three move from one old point."""
    del step, option

    def advance(state: State, batches: Batches) -> State:
        lower, upper = _firsts(batches)
        terms = terms_at(job, state.point, lower, upper)
        after = step_along(terms, state.point, state.rates, state.count)
        return state._replace(point=after, count=state.count + 1)

    return _program(job, advance, None, {"lower": 1, "upper": 1}, 1 + 2 + 2 + 1)


def make_saba(job: jobs.Job, step: float = 0, option: Any = None) -> Program:
    """Return SABA."""
    del step, option

    def advance(state: State, batches: Batches) -> State:
        lower, upper = _firsts(batches)
        fresh = terms_at(job, state.point, lower, upper)
        numbers = [lower["start"] // job.batch] * 3 + [upper["start"] // job.batch] * 2
        found = list(map(average, state.more, fresh, numbers))
        terms = Terms(*(term for term, _ in found))
        return State(
            step_along(terms, state.point, state.rates, state.count),
            state.rates,
            state.count + 1,
            [row for _, row in found],
        )

    table = start_table(job)
    return _program(job, advance, table, {"lower": 1, "upper": 1}, 1 + 2 + 2 + 1)


class Momentum(NamedTuple):
    """What FSLA keeps: the upper's direction, and the point that it belongs to."""

    direction: jax.Array
    point: Point


def make_fsla(job: jobs.Job, step: float = 0, option: Any = None) -> Program:
    """Return FSLA: y, then v, then x along a direction with recursive momentum.

    The momentum is that of STORM: the old direction is corrected by the change of the
    estimate on one and the same batch; its weight is 1 - 1 / (k + 1)^(1/2).
    """
    del step, option

    def direction(at: Point, lower: Any, upper: Any) -> jax.Array:
        def paired(x: jax.Array) -> jax.Array:
            return jnp.vdot(at.v, jax.grad(job.lower)(at.y, x, lower))

        f_x = jax.grad(job.upper, argnums=1)(at.y, at.x, upper)
        return f_x - jax.grad(paired)(at.x)

    def advance(state: State, batches: Batches) -> State:
        lower = [jax.tree.map(lambda x, i=i: x[i], batches["lower"]) for i in range(3)]
        upper = [jax.tree.map(lambda x, i=i: x[i], batches["upper"]) for i in range(2)]
        at, rates, (old, before) = state.point, state.rates, state.more
        fade = (1.0 + state.count) ** -rates.decay
        y = at.y - fade * rates.lower * jax.grad(job.lower)(at.y, at.x, lower[0])
        _, product = jax.jvp(
            lambda y: jax.grad(job.lower)(y, at.x, lower[1]), (y,), (at.v,)
        )
        f_y = jax.grad(job.upper)(y, at.x, upper[0])
        here = Point(y, at.v - fade * rates.lower * (product - f_y), at.x)
        new = direction(here, lower[2], upper[1])
        correction = old - direction(before, lower[2], upper[1])
        keep = 1 - (1.0 + state.count) ** -0.5
        along = new + keep * correction
        after = here._replace(x=at.x - fade * rates.upper * along)
        return State(after, rates, state.count + 1, Momentum(along, here))

    first = Momentum(jnp.zeros_like(_start(job).x), _start(job))
    # One gradient for y; a product and a gradient for v; two of each for x.
    price = 1 + (2 + 1) + 2 * (2 + 1)
    return _program(job, advance, first, {"lower": 3, "upper": 2}, price)


def _firsts(batches: Batches) -> tuple[Any, Any]:
    lower, upper = (
        jax.tree.map(lambda x: x[0], batches[key]) for key in ("lower", "upper")
    )
    return lower, upper


def _start(job: jobs.Job) -> Point:
    y = jnp.asarray(job.y)
    return Point(y, jnp.zeros_like(y), jnp.asarray(job.x))


def _program(
    job: jobs.Job,
    advance: Callable[[State, Batches], State],
    more: Any,
    draws: dict[str, int],
    evaluations: int,
) -> Program:
    return Program(
        start=lambda rates: State(_start(job), rates, jnp.float32(0), more),
        step=advance,
        upper=lambda state: state.point.x,
        lower=lambda state: state.point.y,
        draws=draws,
        evaluations=evaluations,
    )


METHODS: dict[str, Method] = {
    "SOBA, simultaneous": Method(make_soba, decay=0.5),
    "SABA": Method(make_saba, decay=0.0),
    "FSLA": Method(make_fsla, decay=0.5),
}
