"""Small programs with known hypergradients: two levels, tasks, three levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlox._engine.engine import Engine
from mlox._problem.composed import Composed
from mlox._problem.problem import Problem
from mlox.methods import count_draws, keeps_memory, reach
from mlox.solvers import System
from mlox.testing.laws import law, require_close
from mlox.testing.memory import STEPS
from mlox.testing.systems import SIZE, make_matrix

Inverse = Callable[[jax.Array, jax.Array], jax.Array]
TASKS = 3
CAUSE = (
    "The multiplier and the pairing are right alone: see whether the method reads "
    "shapes, structures or dtypes of its arguments that a graph changes."
)


def check_graphs(method: Any, expected: Inverse, rate: float, tolerance: float) -> None:
    """Raise AssertionError unless the hypergradients of small programs are right."""
    dtype = jnp.result_type(float)
    matrix = make_matrix(System.DEFINITE, dtype)
    start = jnp.linspace(-1.0, 1.0, SIZE, dtype=dtype)
    # The lower min (y - sin x)^T H (y - sin x) / 2 has G = H (y - sin x) and the answer
    # y = sin x, so the upper |y - 1|^2 / 2 has the hypergradient -<lambda, dG/dx> =
    # cos(x) H lambda.
    lam = expected(matrix, jnp.sin(start) - 1)
    right = jnp.cos(start) * (matrix @ lam)
    for tasks in (None, TASKS):
        kind = "a solved quadratic program" + (" with tasks" if tasks else "")
        with law(method, f"the hypergradient of {kind} is the expected one", CAUSE):
            engine = _two_levels(method, matrix, start, rate, tasks)
            found = _hypergradient(engine, "upper")
            require_close(found, right, tolerance)
    if keeps_memory(method, start) or count_draws(method) > 1:
        return  # they have no place in a tower
    if reach(method) >= System.SYMMETRIC:
        with law(
            method,
            "the hypergradient of a solved quadratic program of three levels is exact",
            f"{CAUSE} A tower is symmetric and indefinite.",
        ):
            engine, exact = _three_levels(method, dtype)
            require_close(_hypergradient(engine, "upper"), exact, tolerance)


def _hypergradient(engine: Engine, name: str) -> jax.Array:
    """Return a hypergradient, after memories have settled while the upper rests."""
    batches = dict.fromkeys(engine.names)
    state = engine.init()
    if state[name].memory is not None:
        resting = state[name].replace(tx=optax.sgd(0.0))
        step = lambda state, _: (engine.step(state, batches)[0], None)
        settled = jax.lax.scan(step, {**state, name: resting}, length=STEPS)[0]
        state = {**state, name: state[name].replace(memory=settled[name].memory)}
    return engine.hypergradient(state, batches, name)[1]


def _problem(name: str, loss: Callable[[Any, Any], Any], **parts: Any) -> Problem:
    # In parts, for Gauss-Newton products: with the parameters as outputs these are
    # products with the Hessian.
    loss_fn = Composed(
        lambda params, batch, ctx: params,
        lambda outputs, batch, ctx: loss(outputs, ctx),
    )
    return Problem.create(name=name, loss_fn=loss_fn, **parts)


def _two_levels(
    method: Any, matrix: jax.Array, start: jax.Array, rate: float, tasks: int | None
) -> Engine:
    def lower_loss(y: Any, ctx: Any) -> Any:
        r = y["a"] - jnp.sin(ctx.upper.params)
        return 0.5 * jnp.vdot(r, matrix @ r)

    def upper_loss(x: Any, ctx: Any) -> Any:
        y = ctx.lower.params["a"]
        return 0.5 * jnp.sum((y - 1) ** 2) / (tasks or 1)

    tx = optax.sgd(rate)
    upper = _problem("upper", upper_loss, params=start, tx=tx)
    lower = _problem(
        "lower",
        lower_loss,
        params={"a": jnp.sin(start)},
        tx=tx,
        method=method,
        tasks=tasks,
        unroll_steps=count_draws(method),
    )
    return Engine([upper, lower], {"upper": ["lower"]}, {"lower": ["upper"]})


def _three_levels(method: Any, dtype: Any) -> tuple[Engine, jax.Array]:
    # The bottom has the answer z = 2 y + x; the middle, which takes that into account,
    # min (y - x)^2 / 2 + (z - 1)^2 / 2, that is 5 y = 2 - x; the upper has the cost
    # (z - 3)^2 / 2 + y^2 / 2 + 2 z y / 5, whose slopes are multiplied by dz/dx =
    # 2 (-1/5) + 1 and dy/dx = -1/5.
    x = jnp.asarray(0.5, dtype)
    y = (2 - x) / 5
    z = 2 * y + x
    parts = {"tx": optax.sgd(0.1), "method": method}
    upper = _problem(
        "upper",
        lambda x, ctx: (
            0.5 * (ctx.bottom.params - 3) ** 2
            + 0.5 * ctx.middle.params**2
            + 0.4 * ctx.bottom.params * ctx.middle.params
        ),
        params=x,
        tx=optax.sgd(0.1),
    )
    middle = _problem(
        "middle",
        lambda y, ctx: (
            0.5 * (y - ctx.upper.params) ** 2 + 0.5 * (ctx.bottom.params - 1) ** 2
        ),
        params=y,
        **parts,
    )
    bottom = _problem(
        "bottom",
        lambda z, ctx: 0.7 * (z - 2 * ctx.middle.params - ctx.upper.params) ** 2,
        params=z,
        **parts,
    )
    engine = Engine(
        [upper, middle, bottom],
        {"upper": ["middle", "bottom"], "middle": ["bottom"]},
        {"bottom": ["middle", "upper"], "middle": ["upper"]},
    )
    return engine, 0.6 * (z - 3 + 0.4 * y) - 0.2 * (y + 0.4 * z)
