"""The gap: about by how much an upper's loss would fall if its lowers were solved."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale

import mlox

from .nested import GRAPHS, Program
from .test_laws import (
    AUTO,
    DENSE,
    quick,
    state_at,
    unrolled_under_implicit,
    unrolled_under_two_players,
    without_data,
)

NEAR, HALF = 1e-3, 5e-4
FIRST = ("uncoupled reader", "siblings")


def moved(program, theta, distance, names):
    """Move answers by a distance, in directions drawn at random."""
    draw = np.random.default_rng(7).normal
    steps = {n: distance * draw(size=program.size) for n in sorted(names)}
    return {**theta, **{n: theta[n] + step for n, step in steps.items()}}


def gaps(engine, top):
    """Return the function from a state to the gaps of one problem, by their blocks."""

    @quick
    def found(state):
        _, metrics = engine.step(state, without_data(engine))
        return {
            key: value
            for key, value in metrics.items()
            if key.startswith(f"{top}/") and key.endswith("/gap")
        }

    return found


def assert_first_order(found, truth):
    """Assert that gaps at two distances, one half the other, err by their square."""
    total = lambda distance: sum(float(x[0]) for x in found(distance).values())
    far, near = (abs(total(d) - truth(d)) for d in (NEAR, HALF))
    assert near < 0.3 * far
    assert 10 * near < abs(truth(HALF))


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("graph", "methods"),
    [
        ("uncoupled reader", DENSE),
        *(slow(g, DENSE) for g in GRAPHS if g not in FIRST),
        slow("siblings", AUTO),
    ],
)
def test_gap_is_first_order_estimate_at_any_depth(graph, methods):
    """One lower, several, blocks in a row, towers, games."""
    program = Program(GRAPHS[graph])
    top = program.graph.names[0]
    answer = program.stationary(top)
    engine = program.engine(methods)
    found = gaps(engine, top)
    movers = program.graph.movers(top)

    def truth(distance):
        there = moved(program, answer, distance, movers)
        return (program.cost(top, there) - program.cost(top, answer)).item()

    assert_first_order(
        lambda d: found(state_at(engine, moved(program, answer, d, movers))), truth
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", [unrolled_under_implicit, unrolled_under_two_players])
def test_gap_is_first_order_estimate_over_unrolled_answers(make):
    """What is run follows where the implicit answers are."""
    program, engine, answer, start, _ = make()
    found = gaps(engine, "t")
    solved = program.graph.movers("t") - {"c"}

    def place(distance):
        return moved(program, answer, distance, solved)

    def truth(distance):
        ends = (program.run["c"](theta) for theta in (place(distance), answer))
        there, here = (program.cost("t", theta).item() for theta in ends)
        return there - here

    begin = {name: x[None] for name, x in start.items()}
    assert_first_order(lambda d: found(state_at(engine, {**place(d), **begin})), truth)


def pair(upper=None, lower=None, dtype=jnp.float64):
    """Make F = sum (y - 1)^2 over C = sum 1.5 (y - x)^2, of two entries."""
    of_both = {"params": jnp.zeros(2, dtype), "tx": optax.sgd(0.0)}
    of_x = {"loss_fn": lambda params, batch, ctx: jnp.sum((ctx.y.params - 1) ** 2)}
    of_y = {
        "loss_fn": lambda y, batch, ctx: 1.5 * jnp.sum((y - ctx.x.params) ** 2),
        "params": jnp.array([0.5, 0.25], dtype),
        "method": mlox.Implicit(mlox.CG(iterations=4)),
    }
    x = mlox.Problem.create(name="x", **(of_both | of_x | (upper or {})))
    y = mlox.Problem.create(name="y", **(of_both | of_y | (lower or {})))
    return mlox.Engine([x, y], u2l={"x": ["y"]}, l2u={"y": ["x"]})


# <lambda, G> = sum 2 (y - 1) (y - x)
EXPECTED = 2 * (-0.5 * 0.5 - 0.75 * 0.25)


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (pair({"tasks": 3}, {"tasks": 3}), EXPECTED),
        (pair(None, {"warmup_steps": 1}), 0.0),
        slow(pair(), EXPECTED),
        slow(pair(None, {"tasks": 3}), 3 * EXPECTED),
        slow(pair(None, {"loss_scale": DynamicScale(scale=8.0)}), EXPECTED),
        slow(pair({"loss_scale": DynamicScale(scale=8.0)}), EXPECTED),
        slow(pair(dtype=jnp.bfloat16), EXPECTED),
    ],
    ids=["tasks", "wait", "plain", "tasks below", "scaled below", "scaled", "bfloat16"],
)
def test_gap_equals_closed_form(engine, expected):
    """It is a mean over the upper's tasks, as the loss is, and zero while one waits."""
    _, metrics = quick(engine.step)(engine.init(), without_data(engine))
    assert metrics["x/y/gap"].dtype == metrics["x/loss"].dtype
    found = metrics["x/y/gap"].astype(float)
    rounding = float(jnp.finfo(metrics["x/loss"].dtype).eps)
    np.testing.assert_allclose(found, [expected], rtol=4 * rounding)


@pytest.mark.slow
def test_only_the_sum_of_gaps_is_an_estimate():
    """Where the truth is zero, the gaps of two blocks cancel."""
    program = Program(GRAPHS["uncoupled reader"])
    answer = program.stationary("t")
    engine = program.engine(DENSE)
    there = moved(program, answer, HALF, "c")
    found = gaps(engine, "t")(state_at(engine, there))
    # The cost of t reads p alone, which is where it answers to the solved c.
    parts = [found[f"t/{name}/gap"].item() for name in "cp"]
    assert min(map(abs, parts)) > 1e-5
    assert abs(sum(parts)) < 1e-9
