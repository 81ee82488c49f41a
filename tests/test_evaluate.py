"""Evaluation of one loss: what it sees, and that nothing changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

TRACES = []
TX = optax.sgd(0.1)


def outer_loss(params, batch, ctx):
    return jnp.sum((ctx.inner(batch["x"]) - batch["y"]) ** 2) + params


def inner_loss(params, batch, ctx):
    TRACES.append(ctx.train)
    mean = batch.mean() if ctx.train else ctx.model_state
    drop = jax.random.normal(ctx.rng) if ctx.rng is not None else 0.0
    return {
        "loss": (params - mean) ** 2 * ctx.outer.params + drop,
        "step": ctx.step,
        "vector": params * jnp.ones(2),
        "model_state": (ctx.model_state + mean) / 2,
    }


def make_engine():
    outer = mlox.Problem.create(
        name="outer", params=jnp.ones(()), tx=TX, loss_fn=outer_loss
    )
    inner = mlox.Problem.create(
        name="inner",
        params=jnp.full((), 3.0),
        tx=TX,
        loss_fn=inner_loss,
        apply_fn=jnp.multiply,
        model_state=jnp.full((), 5.0),
        unroll_steps=2,
        rng=0,
    )
    return mlox.Engine([outer, inner], {"outer": ["inner"]}, {"inner": ["outer"]})


@pytest.fixture(scope="module")
def engine():
    return make_engine()


class Tensor:
    """What a PyTorch tensor is to NumPy: an object that turns into an array."""

    def __array__(self, dtype=None, copy=None):
        return np.full(2, 2.0)


def test_a_loss_is_evaluated_at_the_state(engine):
    state = engine.init()
    state["inner"] = state["inner"].replace(step=jnp.asarray(7, jnp.int32))
    found = engine.evaluate(state, "inner", np.zeros(4))
    assert {name: value.tolist() for name, value in found.items()} == {
        "loss": 4.0,
        "step": 7,
        "vector": [3.0, 3.0],
    }
    # The batch has no leading axis of steps, and any length.
    batch = {"x": np.arange(3.0), "y": 1.0}
    assert float(engine.evaluate(state, "outer", batch)["loss"]) == 1 + 4 + 25 + 1
    assert float(state["inner"].model_state) == 5.0


def test_a_step_trains_and_an_evaluation_does_not(engine):
    state, batches = engine.init(), {"inner": np.zeros((2, 4))}
    batches["outer"] = {"x": np.zeros((1, 3)), "y": np.zeros((1, 3))}
    TRACES.clear()
    jax.eval_shape(engine.step, state, batches)
    jax.eval_shape(lambda *args: engine.hypergradient(*args, "outer"), state, batches)
    assert TRACES
    assert all(train is True for train in TRACES)
    TRACES.clear()
    make_engine().evaluate(state, "inner", np.zeros(9))
    assert all(train is False for train in TRACES)


def test_a_loss_draws_only_with_a_key_that_is_given(engine):
    state = engine.init()
    key = jax.random.key(3)
    drawn = float(jax.random.normal(key))
    for rng, expected in ((None, 4.0), (key, 4.0 + drawn), (3, 4.0 + drawn)):
        loss = engine.evaluate(state, "inner", np.zeros(4), rng)["loss"]
        np.testing.assert_allclose(loss, expected)


def test_equal_engines_share_what_is_compiled(engine):
    state = engine.init()
    engine.evaluate(state, engine.problems[1], np.zeros(6))
    TRACES.clear()
    again = make_engine()
    again.evaluate(again.init(), again.problems[1], np.ones(6))
    assert TRACES == []


def test_an_evaluation_can_be_transformed(engine):
    state = engine.init()

    def loss(params):
        there = {**state, "inner": state["inner"].replace(params=params)}
        return engine.evaluate(there, "inner", jnp.zeros(4))["loss"]

    slopes = jax.jit(jax.vmap(jax.grad(loss)))(jnp.array([3.0, 6.0]))
    assert slopes.tolist() == [-4.0, 2.0]


def test_it_serves_as_a_validation(engine):
    data = {"inner": [np.zeros(4)], "outer": [{"x": np.zeros(3), "y": np.zeros(3)}]}
    state, history = engine.run(
        engine.init(),
        data,
        2,
        validation=lambda state: {
            "loss": engine.evaluate(state, "inner", Tensor())["loss"]
        },
        loggers=(),
    )
    last = engine.evaluate(state, "inner", np.zeros(2))["loss"]
    assert history["validation/loss"][-1] == last


def test_a_problem_without_data_takes_none():
    problem = mlox.Problem.create(
        name="x",
        params=jnp.ones(()),
        tx=TX,
        loss_fn=lambda params, batch, ctx: params if batch is None else 0.0,
    )
    engine = mlox.Engine([problem])
    assert float(engine.evaluate(engine.init(), "x", None)["loss"]) == 1.0


def test_a_problem_samples_its_own_batch():
    problem = mlox.Problem.create(
        name="x",
        params=jnp.ones(()),
        tx=TX,
        loss_fn=lambda params, batch, ctx: {
            "loss": params * batch["drawn"],
            "trains": batch["trains"],
            "apart": batch["drawn"] != jax.random.normal(ctx.rng),
        },
        sample=lambda params, ctx: {
            "drawn": jax.random.normal(ctx.rng),
            "trains": ctx.train,
        },
    )
    engine = mlox.Engine([problem])
    state = engine.init()
    one, again, other = (engine.evaluate(state, "x", None, seed) for seed in (1, 1, 2))
    assert one["loss"] == again["loss"]
    assert one["loss"] != other["loss"]
    assert not one["trains"]
    assert one["apart"]
    given = engine.evaluate(state, "x", {"drawn": 2.0, "trains": True}, 1)
    assert float(given["loss"]) == 2.0


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"name": "other"},
            ValueError,
            "evaluate of 'other': no such problem; the eng",
        ),
        ({"batch": "text"}, ValueError, "a batch of 'inner' has a leaf of type str"),
        ({"rng": "key"}, TypeError, "problem 'inner': rng is 'key'; expected a PRNG"),
        ({"state": {}}, ValueError, r"state.keys\(\) is \[\]; expected"),
    ],
)
def test_arguments_are_checked(engine, change, kind, message):
    usual = {"state": engine.init(), "name": "inner", "batch": np.zeros(4)}
    with pytest.raises(kind, match=message):
        engine.evaluate(**{**usual, **change})
