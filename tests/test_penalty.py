"""`mlox.penalty`: hypergradients from first derivatives, with known biases."""

from __future__ import annotations

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

STEPS = 60
A, C, B = 2.0, 3.0, 0.7
EDGES = {"x": ["y"]}, {"y": ["x"]}


def zero(shape: tuple[int, ...] = ()) -> jax.Array:
    return jnp.zeros(shape)


def upper_loss(x: Any, batch: Any, ctx: mlox.Context) -> Any:
    return C * ctx.y.params**2 / 2 + B * ctx.y.params


def lower_loss(y: Any, batch: Any, ctx: mlox.Context) -> Any:
    return A * y**2 / 2 - ctx.x.params * y


def pair(
    upper: Any = upper_loss, lower: Any = lower_loss, **options: Any
) -> list[mlox.Problem]:
    """Make an upper x at 0.3 and a lower y, with options of y, or of x as x_..."""
    given = {"params": zero(), "tx": optax.sgd(0.4), "unroll_steps": STEPS}
    for_x = {n[2:]: v for n, v in options.items() if n.startswith("x_")}
    for_y = {n: v for n, v in options.items() if not n.startswith("x_")}
    x = {"params": jnp.array(0.3), "tx": optax.sgd(0.1), "loss_fn": upper, **for_x}
    return [
        mlox.Problem.create(name="x", **x),
        mlox.Problem.create(name="y", **{**given, "loss_fn": lower, **for_y}),
    ]


def penalized(problems: Any, **options: Any) -> mlox.Engine:
    given = {"lower": "y", "strength": 10.0, **options}
    return mlox.Engine(*mlox.penalty(problems, *EDGES, **given))


def gradient(engine: mlox.Engine, batches: Any = None, state: Any = None) -> Any:
    batches = dict.fromkeys(engine.names) if batches is None else batches
    state = engine.init() if state is None else state
    return engine.hypergradient(state, batches, "x")[1]


def bias(k: float, order: int) -> float:
    return k * A / (k * A + C) if order == 1 else A**2 / (A**2 - C**2 / k**2)


@pytest.mark.parametrize("order", [1, 2])
def test_hypergradient_of_a_quadratic_has_the_bias_in_closed_form(order):
    truth = (C * 0.3 / A + B) / A
    for k in (4.0, 50.0):
        found = gradient(penalized(pair(), strength=k, order=order))
        chex.assert_trees_all_close(found / truth, bias(k, order), rtol=1e-10)


@pytest.mark.parametrize("order", [1, 2])
def test_run_ends_where_the_penalized_gradient_vanishes(order):
    # F_x + ... = 0 with F_x = x: x + bias (C x / A + B) / A = 0.
    problems = pair(lambda x, batch, ctx: upper_loss(x, batch, ctx) + x**2 / 2)
    engine = penalized(problems, strength=5.0, order=order)
    state, history = engine.run(
        engine.init(), train_iters=300, loggers=(), progress=False
    )
    scale = bias(5.0, order) / A
    best = -scale * B / (1 + scale * C / A)
    chex.assert_trees_all_close(state["x"].params, best, rtol=1e-10)
    assert {"x/loss", "x/cost", "y/loss", "y/cost"} <= set(history)


def nonlinear_upper(x: Any, batch: Any, ctx: mlox.Context) -> Any:
    return jnp.sum((jnp.tanh(ctx.y.params) - 0.5) ** 2) + 0.1 * jnp.sum(
        x * ctx.y.params
    )


def nonlinear_lower(y: Any, batch: Any, ctx: mlox.Context) -> Any:
    x = ctx.x.params
    return jnp.sum((y - jnp.sin(x)) ** 2) + 0.2 * jnp.sum(y**4) + jnp.prod(y) * x[0]


@pytest.mark.parametrize("order", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bias_falls_with_the_power_of_the_strength_when_nothing_is_quadratic(order):
    start = jnp.array([0.4, -0.7])
    problems = pair(
        nonlinear_upper,
        nonlinear_lower,
        params=zero((2,)),
        x_params=start,
        tx=optax.sgd(0.2),
        unroll_steps=120,
    )
    truth = gradient(mlox.Engine(problems, *EDGES))
    errors = [
        jnp.linalg.norm(gradient(penalized(problems, strength=k, order=order)) - truth)
        for k in (40.0, 80.0)
    ]
    assert errors[0] < 0.1 * jnp.linalg.norm(truth)
    chex.assert_trees_all_close(errors[0] / errors[1], 2.0**order, rtol=0.05)


@jax.custom_vjp
def opaque(y):
    return jnp.sin(y)


def opaque_forward(y):
    return jnp.sin(y), y


def opaque_backward(y, slope):
    # Written outside JAX, as a kernel is: it has no derivative.
    shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
    cosine = jax.pure_callback(lambda y: np.cos(y), shape, y, vmap_method="expand_dims")
    return (slope * cosine,)


opaque.defvjp(opaque_forward, opaque_backward)


def opaque_lower(y: Any, batch: Any, ctx: mlox.Context) -> Any:
    return (opaque(y) - ctx.x.params) ** 2


@pytest.mark.parametrize("order", [1, 2])
def test_nothing_is_differentiated_twice(order):
    problems = pair(
        lambda x, batch, ctx: (ctx.y.params - 0.5) ** 2, opaque_lower, unroll_steps=4
    )
    with pytest.raises(TypeError, match="cannot be differentiated"):
        gradient(mlox.Engine(problems, *EDGES))
    engine = penalized(problems, strength=20.0, order=order)
    batches = dict.fromkeys(engine.names)
    program = str(jax.make_jaxpr(engine.step)(engine.init(), batches))
    # One backward pass of C in each loop; x does not even need one, as C reads it
    # outside of what is opaque.
    assert program.count("pure_callback") == 2
    state, _ = engine.run(engine.init(), train_iters=60, loggers=(), progress=False)
    chex.assert_trees_all_close(state["x"].params, jnp.sin(0.5), rtol=0.03)


def test_answers_read_the_upper_as_a_constant():
    engine = penalized(pair())
    assert engine.names == ("x", "y", "y_reference")
    assert engine.paths == {name: [] for name in engine.names}
    text = engine.explain()
    assert re.search(r"x\n  steps +once.*\n  reads lowers  y, y_reference\n", text)
    assert text.count("reads constants  x") == 2
    assert "-.->|constants|" in engine.mermaid()


def noisy_lower(y: Any, batch: Any, ctx: mlox.Context) -> Any:
    noise = jax.random.normal(ctx.rng)
    return (y - batch) ** 2 / 2 + 100 * ctx.x.params * noise * y


def noisy_upper(x: Any, batch: Any, ctx: mlox.Context) -> Any:
    return x**2 * batch


def test_both_costs_of_the_difference_see_one_batch_and_one_key():
    # F does not depend on y: y and z are equal, and whatever C draws cancels.
    problems = pair(noisy_upper, noisy_lower, rng=0, unroll_steps=3)
    for order, second in ((1, "y_reference"), (2, "y_minus")):
        engine = penalized(problems, strength=1e3, order=order)
        own, both = jnp.arange(3.0), {"x": jnp.ones(3), "y": jnp.arange(3.0)}
        batches = {
            "x": {"x": jnp.full(1, 2.0), "y": jnp.ones(1)},
            "y": both,
            second: own if order == 1 else both,
        }
        chex.assert_trees_all_close(gradient(engine, batches), 4 * 0.3, rtol=1e-9)


def test_schedule_of_the_strength_counts_steps_of_the_upper():
    problems = pair()
    engine = penalized(problems, strength=lambda step: 4.0 + 46.0 * step)
    state = engine.init()
    for k in (4.0, 50.0):
        truth = (C * state["x"].params / A + B) / A
        found = gradient(engine, state=state)
        chex.assert_trees_all_close(found / truth, bias(k, 1), rtol=1e-10)
        state, _ = engine.step(state, dict.fromkeys(engine.names))


TASKS = 3
RATES = jnp.array([1.0, 1.5, 2.0])


def upper_of_tasks(x: Any, batch: Any, ctx: mlox.Context) -> Any:
    y = ctx.y.params
    return (jnp.sum(y) - batch) ** 2 + jnp.mean(jnp.sum(ctx.y(y))) ** 2


def lower_of_tasks(y: Any, batch: Any, ctx: mlox.Context) -> Any:
    loss = batch * y**2 / 2 - jnp.sin(ctx.x.params) * y + 0.1 * y**4
    state = ctx.model_state + 1.0 + ctx.task_index.astype(float)
    return {"loss": loss, "square": y**2, "model_state": state}


OPTIONS = {
    "rng": 0,
    "tx": optax.inject_hyperparams(optax.sgd)(1.0),
    "hyperparams": lambda ctx: {
        "learning_rate": 0.3 + 0.01 * ctx.task_index.astype(float)
    },
    "reset": lambda y, ctx: 0 * y + ctx.x.params,
    "project": lambda y: jnp.clip(y, -3.0, 3.0),
    "tasks_at_once": 1,
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("upper_tasks", "options"),
    [(None, {}), (TASKS, {}), (None, OPTIONS), (TASKS, OPTIONS)],
    ids=["shared", "each", "shared, all options", "each, all options"],
)
@pytest.mark.slow
def test_each_task_has_answers_of_its_own(upper_tasks, options, order):
    problems = pair(
        upper_of_tasks,
        lower_of_tasks,
        x_tasks=upper_tasks,
        tasks=TASKS,
        model_state=zero(),
        apply_fn=lambda params, y: 2 * params + y,
        **options,
    )
    of_x = jnp.ones((1,) if upper_tasks is None else (1, TASKS))
    of_y = jnp.tile(RATES, (STEPS, 1))
    given = {"x": of_x, "y": of_y}
    truth = gradient(mlox.Engine(problems, *EDGES), given)
    engine = penalized(problems, strength=1e4, order=order)
    both = {"x": jnp.repeat(of_x, STEPS, axis=0), "y": of_y}
    batches = {
        "x": {"x": of_x, "y": of_y[:1]},
        "y": both,
        engine.names[-1]: of_y if order == 1 else both,
    }
    found = gradient(engine, batches)
    chex.assert_trees_all_close(found, truth, rtol=1e-2 if order == 1 else 1e-4)
    state, metrics = engine.step(engine.init(), batches)
    assert state["y"].params.shape == (TASKS,)
    chex.assert_trees_all_close(state["y"].model_state, STEPS * (1.0 + jnp.arange(3.0)))
    assert metrics["y/square"].shape == (STEPS,)


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
def test_answers_sample_the_same_batches_and_train_the_same_parameters(order):
    def lower(y: Any, batch: Any, ctx: mlox.Context) -> Any:
        return jnp.sum((y["w"] - batch - jnp.sin(ctx.x.params)) ** 2) + y["b"] ** 2

    problems = pair(
        lambda x, batch, ctx: (ctx.y.params["w"] - 1) ** 2 * batch,
        lower,
        params={"w": zero(), "b": jnp.array(2.0)},
        rng=0,
        sample=lambda y, ctx: 0.1 * jax.random.normal(ctx.rng),
        trainable=lambda y: {"w": True, "b": False},
        unroll_steps=20,
    )
    engine = penalized(problems, strength=1e5, order=order)
    both = {"x": jnp.ones(20)}
    batches = {"x": {"x": jnp.ones(1)}, "y": both}
    batches["y_minus" if order == 2 else "y_reference"] = both if order == 2 else None
    state, _ = engine.step(engine.init(), batches)
    chex.assert_trees_all_equal(state["y"].params["b"], 2.0)
    # Different batches would keep y and z 0.1 apart, which the strength multiplies.
    apart = state["y"].params["w"] - state[engine.names[2]].params["w"]
    assert jnp.abs(apart) < 1e-4
    # y still follows its batches, by about 0.1.
    slope = 2 * (state["y"].params["w"] - 1) * jnp.cos(0.3)
    chex.assert_trees_all_close(gradient(engine, batches), slope, rtol=0.2)


# Optimizers of tasks that become one problem.


def joined_engine(tx):
    problems = pair(
        lambda x, batch, ctx: jnp.sum((ctx.y.params - 1.0) ** 2) / 2,
        lambda y, batch, ctx: (y - ctx.x.params) ** 2 / 2,
        tasks=2,
        tx=tx,
    )
    return penalized(problems, strength=3.0, order=1)


@pytest.mark.slow
def test_joined_tasks_are_updated_by_chains_of_optax():
    engine = joined_engine(optax.chain(optax.clip(1e3), optax.sgd(0.7)))
    found = gradient(engine, dict.fromkeys(engine.names))
    x = engine.init()["x"].params
    np.testing.assert_allclose(found, 2 * (x - 1.0) * 3 / 4, rtol=1e-10)


@pytest.mark.slow
def test_joined_tasks_refuse_optimizers_that_evaluate_the_cost():
    engine = joined_engine(optax.lbfgs())
    with pytest.raises(ValueError, match="the tasks are joined, since"):
        gradient(engine, dict.fromkeys(engine.names))


@pytest.mark.slow
def test_check_names_no_problem_whose_answers_are_constants():
    engine = penalized(pair(), strength=3.0)
    batches = dict.fromkeys(engine.names)
    with pytest.raises(
        ValueError, match="No problem of this graph has lowers that respond"
    ):
        mlox.check(engine, engine.init(), batches, "x")
