"""The methods of mlox, on any job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jobs
import optax
from programs import Batches, Method, Program, Rates

import mlox

ROUNDS = 10  # steps of the lower, and products, where a method makes several


class LowerRate(NamedTuple):
    """The state of the lower's descent: r, its exponent, and the steps made."""

    rate: jax.Array
    decay: jax.Array
    count: jax.Array


class UpperRate(NamedTuple):
    """The same of the upper."""

    rate: jax.Array
    decay: jax.Array
    count: jax.Array


def descend(
    kind: type[LowerRate] | type[UpperRate], every: int = 1
) -> optax.GradientTransformation:
    """Descend with steps of r / (k + 1)^decay, k the steps made over `every`."""

    def init(params: Any) -> LowerRate | UpperRate:
        del params
        return kind(jnp.float32(0), jnp.float32(0), jnp.float32(0))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        length = state.rate / (1.0 + state.count // every) ** state.decay
        return (
            jax.tree.map(lambda g: -length * g, updates),
            state._replace(count=state.count + 1),
        )

    return optax.GradientTransformation(init, update)


def _with_rates(state: Any, rates: Rates) -> Any:
    """Put step lengths into the states of all optimizers."""

    def put(node: Any) -> Any:
        if isinstance(node, LowerRate):
            return node._replace(rate=rates.lower, decay=rates.decay)
        if isinstance(node, UpperRate):
            return node._replace(rate=rates.upper, decay=rates.decay)
        return node

    return jax.tree.map(put, state, is_leaf=_is_rate)


def _is_rate(node: Any) -> bool:
    return isinstance(node, LowerRate | UpperRate)


def problems_of(
    job: jobs.Job,
    method: Any,
    rounds: int = 1,
    upper_tx: optax.GradientTransformation | None = None,
    lower_tx: optax.GradientTransformation | None = None,
) -> list[mlox.Problem]:
    """Write a job as two problems, x above y."""
    x = mlox.Problem.create(
        name="x",
        params=jnp.asarray(job.x),
        tx=upper_tx or descend(UpperRate),
        loss_fn=lambda params, batch, ctx: job.upper(ctx.y.params, params, batch),
    )
    y = mlox.Problem.create(
        name="y",
        params=jnp.asarray(job.y),
        tx=lower_tx or descend(LowerRate, rounds),
        loss_fn=lambda params, batch, ctx: job.lower(params, ctx.x.params, batch),
        method=method,
        unroll_steps=rounds,
    )
    return [x, y]


def program_of(
    engine: mlox.Engine,
    evaluations: int,
    draws: dict[str, int],
    batches_of: Callable[[Batches], dict[str, Any]],
) -> Program:
    """Return the program of an engine with problems x and y."""
    first = engine.init()
    return Program(
        start=lambda rates: _with_rates(first, rates),
        step=lambda state, batches: engine.step(state, batches_of(batches))[0],
        upper=lambda state: state["x"].params,
        lower=lambda state: state["y"].params,
        draws=draws,
        evaluations=evaluations,
    )


def _bilevel(
    job: jobs.Job, method: Any, products: int, rounds: int = ROUNDS, **optimizers: Any
) -> Program:
    """Return a program of two problems, which asks for some Hessian products."""
    engine = mlox.Engine(
        problems_of(job, method, rounds, **optimizers),
        {"x": ["y"]},
        {"y": ["x"]},
        metrics="none",
    )
    return program_of(
        engine,
        # The lower's gradients, the upper's, the products, and the cross derivative.
        rounds + 1 + 2 * products + 2,
        {"lower": rounds, "upper": 1},
        lambda batches: {"x": batches["upper"], "y": batches["lower"]},
    )


def _implicit(solver: Callable[[float], Any], products: int, by_step: bool) -> Method:
    def make(job: jobs.Job, step: float, option: Any) -> Program:
        del option
        return _bilevel(job, mlox.Implicit(solver(step)), products)

    return Method(make, by_step)


def _nystrom(job: jobs.Job, step: float, option: Any) -> Program:
    del step
    solver = mlox.Nystrom(rank=ROUNDS, damping=option)
    return _bilevel(job, mlox.Implicit(solver), ROUNDS)


def _warm(job: jobs.Job, step: float, option: Any) -> Program:
    # A start that is not zero costs conjugate gradients one product.
    del step, option
    method = mlox.Implicit(mlox.CG(iterations=3), warm_start=True)
    return _bilevel(job, method, 4)


def _amigo(job: jobs.Job, step: float, option: Any) -> Program:
    del option
    solver = mlox.Richardson(iterations=ROUNDS, step=step)
    method = mlox.Implicit(solver, warm_start=True, draws=ROUNDS)
    return _bilevel(job, method, ROUNDS)


def _stocbio(job: jobs.Job, step: float, option: Any) -> Program:
    del option
    solver = mlox.Neumann(iterations=ROUNDS, step=step)
    return _bilevel(job, mlox.Implicit(solver, draws=ROUNDS), ROUNDS)


def _soba(job: jobs.Job, step: float, option: Any) -> Program:
    del option
    return _bilevel(job, mlox.SOBA(step=step), 1, rounds=1)


def _ma_soba(job: jobs.Job, step: float, option: Any) -> Program:
    mean = optax.chain(optax.ema(option, debias=False), descend(UpperRate))
    return _bilevel(job, mlox.SOBA(step=step), 1, rounds=1, upper_tx=mean)


def _sama(job: jobs.Job, step: float, option: Any) -> Program:
    del step, option
    return _bilevel(job, mlox.SAMA(), 0)


def _fixed_point(job: jobs.Job, step: float, option: Any) -> Program:
    del step, option
    return _bilevel(job, mlox.FixedPoint(iterations=ROUNDS), ROUNDS)


def _difference(job: jobs.Job, step: float, option: Any) -> Program:
    # Two gradients in place of the cross derivative: the same price.
    del step, option
    return _bilevel(job, mlox.FiniteDifference(), 0)


def _unrolled(job: jobs.Job, step: float, option: Any) -> Program:
    # Back through each step goes a Hessian product, the first one excepted, and a
    # cross derivative.
    del step, option
    found = _bilevel(job, mlox.Unrolled(), 0)
    back = 2 * (ROUNDS - 1) + 2 * ROUNDS
    return found._replace(evaluations=ROUNDS + 1 + back)


def _penalty(job: jobs.Job, strength: float, order: int) -> Program:
    problems = problems_of(job, None, ROUNDS)
    graph = mlox.penalty(
        problems, {"x": ["y"]}, {"y": ["x"]}, lower="y", strength=strength, order=order
    )
    engine = mlox.Engine(*graph, metrics="none")

    def batches_of(batches: Batches) -> dict[str, Any]:
        # y and its reference see the same batches, so that their noise cancels.
        both = {"y": batches["lower"], "x": batches["upper"]}
        below = jax.tree.map(lambda rows: rows[:ROUNDS], both)
        last = jax.tree.map(lambda rows: rows[ROUNDS:], both)
        if order == 1:
            return {"x": last, "y": below, "y_reference": below["y"]}
        return {"x": last, "y": below, "y_minus": below}

    # Of C and F: in each round 2 and `order`, for the upper 2 and `order`.
    price = (2 + order) * (ROUNDS + 1)
    draws = {"lower": ROUNDS + 1, "upper": ROUNDS + 1}
    return program_of(engine, price, draws, batches_of)


def _f2sa(order: int) -> Method:
    def make(job: jobs.Job, step: float, option: Any) -> Program:
        del step
        return _penalty(job, option, order)

    return Method(make, options=(100.0, 30.0, 10.0, 3.0))


def _storm(job: jobs.Job, step: float, option: Any) -> Program:
    # Each level pays for its direction at two points: a gradient of the lower, and a
    # gradient, a Hessian product and a cross derivative of the upper.
    found = _bilevel(
        job,
        mlox.SOBA(step=step),
        1,
        rounds=1,
        upper_tx=optax.chain(mlox.estimators.storm(option), descend(UpperRate)),
        lower_tx=optax.chain(mlox.estimators.storm(option), descend(LowerRate)),
    )
    return found._replace(evaluations=2 * found.evaluations)


def _bome(job: jobs.Job, step: float, option: Any) -> Program:
    del option
    problems = problems_of(job, None)
    graph = mlox.bome(
        problems, {"x": ["y"]}, {"y": ["x"]}, lower="y", steps=ROUNDS, rate=step
    )
    engine = mlox.Engine(*graph, metrics="none")

    def batches_of(batches: Batches) -> dict[str, Any]:
        last = {"y": jax.tree.map(lambda rows: rows[ROUNDS:], batches["lower"])}
        last["x"] = batches["upper"]
        below = jax.tree.map(lambda rows: rows[:ROUNDS], batches["lower"])
        return {"x": last, "y": last, "y_reference": below}

    # The reference's steps, then a gradient of F and of C at two points.
    draws = {"lower": ROUNDS + 1, "upper": 1}
    return program_of(engine, ROUNDS + 3, draws, batches_of)


METHODS: dict[str, Method] = {
    "Implicit(CG)": _implicit(lambda step: mlox.CG(iterations=ROUNDS), ROUNDS, False),
    "Implicit(Neumann)": _implicit(
        lambda step: mlox.Neumann(iterations=ROUNDS, step=step), ROUNDS, True
    ),
    "Implicit(CG), warm": Method(_warm),
    "Implicit(Nystrom)": Method(_nystrom, options=(0.01, 0.03, 0.1, 0.3)),
    "stocBiO": Method(_stocbio, by_step=True),
    "AmIGO": Method(_amigo, by_step=True),
    "SOBA": Method(_soba, by_step=True),
    "MA-SOBA": Method(_ma_soba, by_step=True, options=(0.9, 0.9, 0.9, 0.9)),
    "STORM": Method(_storm, by_step=True, options=(0.1, 0.1, 0.1, 0.1)),
    "FixedPoint": Method(_fixed_point),
    "SAMA": Method(_sama),
    "FiniteDifference": Method(_difference),
    "Unrolled": Method(_unrolled),
    "BOME": Method(_bome, by_step=True),
    "F2SA": _f2sa(order=1),
    "F2SA, order 2": _f2sa(order=2),
}
