"""Newton steps on answers: errors that become quadratic, and distances confirmed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

from .nested import GRAPHS, Program, slope
from .test_gap import HALF, NEAR, moved, pair, slow
from .test_laws import (
    DENSE,
    implicit_under_unrolled,
    quick,
    state_at,
    unrolled_beside_implicit,
    unrolled_reader_of_implicit,
    unrolled_under_implicit,
    unrolled_under_two_players,
    without_data,
)

REFINED = mlox.Implicit(mlox.Dense(), refine=1)


def refined(engine):
    """Return the engine with one Newton step on each implicit answer."""
    problems = [
        problem.replace(method=dataclasses.replace(problem.method, refine=1))
        if isinstance(problem.method, mlox.Implicit)
        else problem
        for problem in engine.problems
    ]
    u2l, l2u = ({name: [] for name in engine.names} for _ in range(2))
    for upper, lower in engine.graph.u2l:
        u2l[upper].append(lower)
    for lower, upper in engine.graph.l2u:
        l2u[lower].append(upper)
    return mlox.Engine(problems, u2l, l2u)


def error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def assert_second_order(function, place, expected):
    """Assert that the error falls with the square of the distance."""
    far, near = (error(function(place(d)), expected) for d in (NEAR, HALF))
    assert near < 0.3 * far < 0.1 * NEAR


@pytest.mark.parametrize(
    "graph",
    [
        "bilevel",
        *(slow(g) for g in GRAPHS if g not in ("bilevel", "siblings", "diamond")),
    ],
)
def test_error_of_refined_hypergradient_is_quadratic(graph):
    program = Program(GRAPHS[graph])
    top = program.graph.names[0]
    answer, movers = program.stationary(top), program.graph.movers(top)
    engine = program.engine(REFINED)
    assert_second_order(
        quick(lambda s: engine.hypergradient(s, without_data(engine), top)[1]),
        lambda d: state_at(engine, moved(program, answer, d, movers)),
        program.differences(top, answer),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [unrolled_under_implicit, unrolled_under_two_players, unrolled_beside_implicit],
)
def test_error_is_quadratic_beside_unrolled_answers(make):
    """What is run under a refined answer, runs under where that is."""
    program, engine, answer, start, _ = make()
    begin = {name: x[None] for name, x in start.items()}
    names = program.graph.movers("t") - set(start)
    engine = refined(engine)
    function = quick(lambda s: engine.hypergradient(s, without_data(engine), "t")[1])
    assert_second_order(
        function,
        lambda d: state_at(engine, {**moved(program, answer, d, names), **begin}),
        program.differences("t", answer),
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", [implicit_under_unrolled, unrolled_reader_of_implicit])
def test_steps_of_unrolled_uppers_see_the_refined_answer(make):
    """A quadratic lower that never moves is solved in each of their steps."""
    program, engine, theta, start, value = make()
    problems = [
        problem.replace(tx=optax.sgd(0.0)) if problem.name == "c" else problem
        for problem in refined(engine).problems
    ]
    engine = mlox.Engine(problems, program.graph.u2l, program.graph.l2u)
    begin = {**theta, **{name: x[None] for name, x in start.items()}}
    state, batches = state_at(engine, begin), without_data(engine)
    found = quick(lambda s: engine.hypergradient(s, batches, "t")[1])(state)
    expected = program.differences("t", theta, value)
    assert error(found, expected) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["bilevel", "three levels"])
def test_error_of_second_derivatives_is_quadratic(graph):
    program = Program(GRAPHS[graph])
    answer, movers = program.stationary("t"), program.graph.movers("t")
    engine = program.engine(REFINED)
    total = functools.partial(program.total, "t")
    expected = program.differences("t", answer, lambda x: slope(total, x, "t"))

    @quick
    def derivative(state):
        def gradient(x):
            there = {**state, "t": state["t"].replace(params=x)}
            return engine.hypergradient(there, without_data(engine), "t")[1]

        return jax.jacrev(gradient)(state["t"].params)

    assert_second_order(
        derivative,
        lambda d: state_at(engine, moved(program, answer, d, movers)),
        expected,
    )


def test_report_is_that_of_the_actual_answer():
    """The hypergradient is that of the refined one; of a quadratic cost, exactly."""

    def loss(params, batch, ctx):
        y = ctx.y.params
        calls = ctx.model_state + jnp.sum(y)
        return {"loss": jnp.sum((y - 1) ** 2), "seen": y, "model_state": calls}

    upper = {"loss_fn": loss, "model_state": jnp.zeros(()), "tx": optax.sgd(1.0)}
    method = mlox.Implicit(mlox.CG(iterations=4), refine=1)
    engine = pair(upper, {"method": method})
    after, metrics = quick(engine.step)(engine.init(), without_data(engine))
    y = np.array([0.5, 0.25])
    np.testing.assert_allclose(metrics["x/loss"], [np.sum((y - 1) ** 2)], rtol=1e-12)
    np.testing.assert_array_equal(metrics["x/seen"], [y])
    np.testing.assert_array_equal(after["x"].model_state, y.sum())
    np.testing.assert_array_equal(after["y"].params, y)
    # dF/dx = 2 (y - 1), where y = x = 0 is the refined answer; no gap is left there.
    np.testing.assert_allclose(after["x"].params, [2.0, 2.0], rtol=1e-12)
    np.testing.assert_allclose(metrics["x/y/gap"], [0.0], atol=1e-12)


@pytest.mark.slow
def test_refines_each_task():
    method = mlox.Implicit(mlox.CG(iterations=4), refine=1)
    engine = pair({"tasks": 3}, {"tasks": 3, "method": method})
    state = engine.init()
    state["y"] = state["y"].replace(params=jnp.arange(6.0).reshape(3, 2))
    _, found = quick(lambda s: engine.hypergradient(s, without_data(engine), "x"))(
        state
    )
    np.testing.assert_allclose(found, np.full((3, 2), -2.0), rtol=1e-12)


def test_confirmation_equals_closed_form():
    """Of a quadratic cost: the step is y - x, the gradients 2 (y - 1) and 2 (x - 1)."""
    engine = pair()
    found = quick(lambda s: engine.traced.confirm(s, without_data(engine), "x"))(
        engine.init()
    )
    here, there = np.array([-0.5, -0.75]), np.array([-1.0, -1.0])
    lengths = np.linalg.norm(here), np.linalg.norm(there)
    expected = {
        "x/y/distance": 1.0,
        "x/norm_ratio": lengths[0] / lengths[1],
        "x/cosine": here @ there / (lengths[0] * lengths[1]),
    }
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-12)


@pytest.mark.slow
def test_confirmation_tells_the_error_of_a_tower():
    program = Program(GRAPHS["three levels"])
    answer, engine = program.stationary("t"), program.engine(DENSE)
    there = moved(program, answer, HALF, "pc")

    @quick
    def found(state):
        batches = without_data(engine)
        gradient = engine.hypergradient(state, batches, "t")[1]
        return gradient, engine.traced.confirm(state, batches, "t")

    gradient, told = found(state_at(engine, there))
    expected = program.differences("t", answer)
    lengths = np.linalg.norm(gradient), np.linalg.norm(expected)
    ratio, cosine = lengths[0] / lengths[1], gradient @ expected / np.prod(lengths)
    y, z = (np.concatenate([theta[n][0] for n in "pc"]) for theta in (there, answer))
    distance = np.linalg.norm(z - y) / np.linalg.norm(y)
    assert abs(told["t/norm_ratio"] - ratio) < 0.1 * abs(ratio - 1)
    assert abs(told["t/cosine"] - cosine) < 0.1 * abs(cosine - 1)
    assert abs(told["t/p/distance"] - distance) < 0.1 * distance


@pytest.mark.parametrize(
    "lower",
    [
        {"method": mlox.FiniteDifference()},
        {"method": mlox.Unrolled()},
        {"project": lambda params: jnp.clip(params, 0.2, 0.9)},
    ],
    ids=["difference", "unrolled", "projected"],
)
def test_confirmation_is_empty_where_no_newton_step_is_defined(lower):
    engine = pair(None, lower)
    confirm = lambda state: engine.traced.confirm(state, without_data(engine), "x")
    assert jax.eval_shape(confirm, engine.init()) == {}
