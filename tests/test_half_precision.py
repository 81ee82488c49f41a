"""Half precision: differences that rounding would swallow, numbers that underflow."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale

import mlox

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(6, 4))
GOAL = np.sin(ROWS[:, 0])
PARAMS = {"in": 0.5 * RANDOM.normal(size=(4, 8)), "out": 0.4 * RANDOM.normal(size=8)}
NO_DATA = {"x": None, "y": None}
SLOW = pytest.mark.slow


def squares(params, rows, goal):
    return (jnp.tanh(rows @ params["in"]) @ params["out"] - goal) ** 2


def hypergradient(method, dtype=jnp.float64, cast=None, size=1.0, **parts):
    """Return a hypergradient of weights of rows; `size` multiplies the upper's loss."""
    to_dtype = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)
    rows, goal = to_dtype((ROWS, GOAL))

    def upper_loss(weights, batch, ctx):
        return jnp.asarray(size, dtype) * jnp.mean(squares(ctx.y.params, rows, -goal))

    def lower_loss(params, batch, ctx):
        return jax.nn.softmax(ctx.x.params) @ squares(params, *batch)

    x = mlox.Problem.create(
        name="x", params=to_dtype(np.zeros(6)), tx=optax.sgd(1.0), loss_fn=upper_loss
    )
    y = mlox.Problem.create(
        name="y",
        params=to_dtype(PARAMS),
        tx=optax.sgd(1e-3),
        loss_fn=lower_loss if cast is None else mlox.MixedPrecision(lower_loss, cast),
        method=method,
        **parts,
    )
    engine = mlox.Engine([x, y], {"x": ["y"]}, {"y": ["x"]})
    batches = {"x": None, "y": jax.tree.map(lambda a: a[None], (rows, goal))}
    find = jax.jit(lambda s: engine.hypergradient(s, batches, "x")[1])
    return np.asarray(find(engine.init()), np.float64)


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("dtype", "cast"),
    [
        pytest.param(jnp.bfloat16, None, marks=SLOW),
        (jnp.float32, jnp.bfloat16),
        pytest.param(jnp.float16, None, marks=SLOW),
        pytest.param(jnp.float32, jnp.float16, marks=SLOW),
    ],
    ids=["bfloat16", "mixed", "float16", "mixed, float16"],
)
def test_differences_are_not_lost_in_rounding(dtype, cast):
    """They were off by 0.3 to 1: a perturbation of 0.01 moves few numbers of bf16."""
    exact = hypergradient(mlox.Implicit(mlox.Identity()))
    found = hypergradient(mlox.FiniteDifference(), dtype, cast)
    assert distance(found, exact) < (1e-3 if dtype == jnp.float32 else 0.015)


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        (mlox.SAMA(), {}),
        pytest.param(mlox.FixedPoint(2), {}, marks=SLOW),
        pytest.param(
            mlox.SAMA(), {"loss_scale": DynamicScale(scale=1024.0)}, marks=SLOW
        ),
        pytest.param(mlox.Implicit(mlox.CG(3)), {}, marks=SLOW),
    ],
    ids=["sama", "fixed point", "sama, scaled", "cg"],
)
def test_small_multipliers_do_not_vanish_in_float16(method, parts):
    """A multiplier of 1e-8 was a tangent of zeros: all of the derivative was lost."""
    exact = hypergradient(method, size=1e-5)
    found = hypergradient(method, jnp.float32, jnp.float16, size=1e-5, **parts)
    assert np.linalg.norm(exact) > 0
    assert distance(found, exact) < 5e-3


@SLOW
def test_multipliers_of_float16_parameters_keep_their_digits():
    exact = hypergradient(mlox.SAMA(), size=1.0)
    found = hypergradient(mlox.SAMA(), jnp.float16, size=1.0)
    assert distance(found, exact) < 5e-3
