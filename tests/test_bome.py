"""`mlox.bome`: one step for both levels, by its formulas, and to the optimum."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox.rewritings._descent import find_multiplier

EDGES = {"x": ["y"]}, {"y": ["x"]}
T, RATE, ETA, SIZE = 4, 0.1, 0.5, 0.05
MATRIX = jnp.array([[2.0, 0.5], [0.5, 1.0]])


def upper_loss(x: Any, batch: Any, ctx: mlox.Context) -> Any:
    return jnp.sum((ctx.y.params - 1) ** 2) / 2 + jnp.sum(jnp.sin(x) ** 2) / 2


def lower_loss(y: Any, batch: Any, ctx: mlox.Context) -> Any:
    gap = y - ctx.x.params
    return gap @ MATRIX @ gap / 2 + 0.05 * jnp.sum(y**4)


def pair(
    upper: Any = upper_loss, lower: Any = lower_loss, size: float = SIZE, **options: Any
) -> list[mlox.Problem]:
    tx = optax.sgd(size)
    of_y = {"params": jnp.array([-0.2, 0.5]), "loss_fn": lower, **options}
    return [
        mlox.Problem.create(
            name="x", params=jnp.array([0.7, 0.4]), tx=tx, loss_fn=upper
        ),
        mlox.Problem.create(name="y", tx=tx, **of_y),
    ]


def build(problems: Any, **options: Any) -> mlox.Engine:
    given = {"lower": "y", "steps": T, "rate": RATE, "eta": ETA, **options}
    return mlox.Engine(*mlox.bome(problems, *EDGES, **given))


def step(engine: mlox.Engine, batches: Any = None) -> Any:
    batches = dict.fromkeys(engine.names) if batches is None else batches
    return engine.step(engine.init(), batches)


def cost_f(x: Any, y: Any) -> Any:
    return jnp.sum((y - 1) ** 2) / 2 + jnp.sum(jnp.sin(x) ** 2) / 2


def cost_c(x: Any, y: Any) -> Any:
    return (y - x) @ MATRIX @ (y - x) / 2 + 0.05 * jnp.sum(y**4)


def by_hand(x: Any, y: Any, eta: float = ETA) -> tuple[Any, Any, Any]:
    z = y
    for _ in range(T):
        z = z - RATE * jax.grad(cost_c, 1)(x, z)
    f = jnp.concatenate(jax.grad(cost_f, (0, 1))(x, y))
    q = jnp.concatenate(
        jax.grad(lambda x, y: cost_c(x, y) - cost_c(x, z), (0, 1))(x, y)
    )
    mu = jnp.maximum(eta * q @ q - f @ q, 0) / (q @ q)
    move = jnp.concatenate([x, y]) - SIZE * (f + mu * q)
    return move[:2], move[2:], mu


def test_step_is_that_of_the_paper_over_both_levels():
    engine = build(pair(), eta=5.0)
    state, metrics = step(engine)
    x, y, mu = by_hand(*(p.params for p in engine.problems[:2]), 5.0)
    assert mu > 0
    found = state["x"].params, state["y"].params, metrics["x/multiplier"][0]
    chex.assert_trees_all_close(found, (x, y, mu), rtol=1e-12)


def test_multiplier_is_zero_without_conflict():
    f, q = jnp.array([1.0, 0.5]), jnp.array([0.5, 0.0])
    assert find_multiplier(f, q, 0.5) == 0
    chex.assert_trees_all_close(find_multiplier(-f, q, 0.5), 2.5)
    # At 0/0, and where squares underflow.
    assert find_multiplier(f, 0 * q, 0.5) == 0
    chex.assert_trees_all_close(find_multiplier(-f, 1e-200 * q, 0.5), 2e200)
    # The same in a step: F asks for what C asks for.
    engine = build(pair(lambda x, batch, ctx: cost_c(x, ctx.y.params)))
    assert step(engine)[1]["x/multiplier"][0] == 0


def test_settled_lower_leaves_a_finite_step():
    at = jnp.zeros(2)
    problems = pair(params=at)
    problems[0] = problems[0].replace(params=at)
    state, metrics = step(build(problems))
    assert metrics["x/multiplier"][0] == 0  # q = 0 and grad q = 0
    chex.assert_tree_all_finite(state["y"].params)


@pytest.mark.slow
def test_run_tends_to_the_nested_optimum_as_rates_and_eta_fall():
    # min (y - 1)^2 / 2 + x^2 / 2 over y = x: both are 1/2.
    def solve(size: float, eta: float, count: int) -> Any:
        problems = pair(
            lambda x, batch, ctx: jnp.sum((ctx.y.params - 1) ** 2 + x**2) / 2,
            lambda y, batch, ctx: jnp.sum((y - ctx.x.params) ** 2) / 2,
            size,
        )
        engine = build(problems, steps=20, rate=0.4, eta=eta)
        state, _ = engine.run(
            engine.init(), train_iters=count, loggers=(), progress=False
        )
        both = jnp.concatenate([state["x"].params, state["y"].params])
        return jnp.abs(both - 0.5).max()

    errors = [solve(0.3, 1.0, 400), solve(0.03, 0.1, 4000)]
    assert errors[1] < 0.025
    assert errors[1] <= errors[0]


def test_nothing_is_differentiated_twice():
    @jax.custom_vjp
    def opaque(y):
        return y**2 / 2

    def backward(y, slope):
        shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
        return (slope * jax.pure_callback(np.asarray, shape, y),)

    opaque.defvjp(lambda y: (opaque(y), y), backward)
    problems = pair(lower=lambda y, batch, ctx: jnp.sum(opaque(y - ctx.x.params)))
    engine = build(problems, steps=2)
    batches = dict.fromkeys(engine.names)
    program = str(jax.make_jaxpr(engine.step)(engine.init(), batches))
    # One for the steps of y_T; for x and for y the slopes of C at y and at y_T.
    assert program.count("pure_callback[") == 5
    chex.assert_tree_all_finite(step(engine)[0]["y"].params)


def test_both_levels_see_the_same_random_numbers():
    def upper(x: Any, batch: Any, ctx: mlox.Context) -> Any:
        return cost_f(x, ctx.y.params) * jax.random.normal(ctx.rng) + batch @ x

    def lower(y: Any, batch: Any, ctx: mlox.Context) -> Any:
        noise = jax.random.normal(ctx.rng, (2,))
        return cost_c(ctx.x.params, y) + (batch + noise) @ y

    problems = pair(upper, lower, rng=0)
    problems[0] = problems[0].replace(rng=jax.random.key(1))
    engine = build(problems)
    both = {"x": jnp.ones((1, 2)), "y": jnp.ones((1, 2))}
    _, metrics = step(engine, {"x": both, "y": both, "y_reference": jnp.ones((T, 2))})
    chex.assert_trees_all_equal(metrics["x/loss"], metrics["y/loss"])


@pytest.mark.slow
@pytest.mark.parametrize("joined", [True, False], ids=["one upper", "an upper each"])
def test_tasks_share_a_multiplier_only_with_their_upper(joined):
    def upper(x: Any, batch: Any, ctx: mlox.Context) -> Any:
        return jnp.sum((ctx.y.params - 1) ** 2) / 2 + jnp.sum(jnp.sin(x) ** 2) / 2

    def lower(y: Any, batch: Any, ctx: mlox.Context) -> Any:
        return batch * cost_c(ctx.x.params, y)

    x, y = pair(upper, lower, tasks=2)
    if not joined:
        x = mlox.Problem.create(
            name="x", params=x.params, tx=x.tx, loss_fn=upper, tasks=2
        )
    engine = build([x, y])
    weights = jnp.array([[1.0, 1.5]])
    both = {"y": weights}
    batches = {"x": both, "y": both, "y_reference": jnp.repeat(weights, T, axis=0)}
    state, metrics = step(engine, batches)
    chex.assert_shape(state["y"].params, (2, 2))
    if not joined:  # the first task is the program alone
        first = jax.tree.map(lambda p: p[0], (state["x"].params, state["y"].params))
        start = jnp.array([0.7, 0.4]), jnp.array([-0.2, 0.5])
        chex.assert_trees_all_close(first, by_hand(*start)[:2], rtol=1e-12)
    else:
        assert metrics["x/multiplier"].shape == (1,)
        assert not jnp.allclose(state["y"].params[0], state["y"].params[1])
