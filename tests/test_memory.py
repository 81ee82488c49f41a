"""Programs of engines that nobody has any more are freed."""

import gc

import jax
import jax.numpy as jnp
import optax
import pytest

import mlox
from mlox._run import dispatch

SGD = optax.sgd(0.1)


def make_engine(center):
    """Return an engine like all others, but for its loss."""
    problem = mlox.Problem.create(
        name="x",
        params=jnp.zeros(2),
        tx=SGD,
        # A loop is a program of its own where the hypergradient is not jitted.
        loss_fn=lambda params, batch, ctx: jnp.sum(
            jax.lax.map(lambda x: (x - center) ** 2, params)
        ),
    )
    return mlox.Engine([problem])


VERBS = {
    "compile": lambda engine, state: engine.compile()(state, {"x": None}),
    "run": lambda engine, state: engine.run(state, train_iters=2, loggers=()),
    "hypergradient": lambda engine, state: engine.hypergradient(
        state, {"x": None}, "x"
    ),
    "evaluate": lambda engine, state: engine.evaluate(state, "x", None),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_programs_of_old_engines_are_freed(verb):
    """Counted while they are alive: the caches of mlox hold those of 32 engines."""

    def count_programs(centers):
        for center in centers:
            engine = make_engine(float(center))
            VERBS[verb](engine, engine.init())
        gc.collect()
        return len(jax.devices()[0].client.live_executables())

    first = count_programs(range(36))
    assert count_programs(range(36, 46)) == first


def test_engines_with_the_same_losses_share_their_programs():
    problem = make_engine(1.0).problems[0]
    engines = [mlox.Engine([problem]) for _ in range(2)]
    assert engines[0].compile() is engines[1].compile()
    assert engines[0].compile() is not make_engine(1.0).compile()


@pytest.mark.slow
@pytest.mark.parametrize("donate", [False, True])
def test_large_state_is_alive_once_between_dispatches(monkeypatch, donate):
    """With Adam it has three arrays of the size of the parameters; so has the engine.

    A donated run keeps a copy as well, for errors.
    """
    size, seen = 1237, []
    monkeypatch.setattr(dispatch, "LARGE", size)

    def count(state):
        del state
        seen.append(sum(x.shape == (size,) for x in jax.live_arrays()))
        return {"alive": 0.0}

    problem = mlox.Problem.create(
        name="x",
        params=jnp.ones(size),
        tx=optax.adam(0.1),
        loss_fn=lambda params, batch, ctx: jnp.sum((params - batch) ** 2),
    )
    engine = mlox.Engine([problem])
    del problem
    # Not with **options, whose tuple of arguments would keep the state.
    engine.run(
        engine.init(),
        {"x": [0.5]},
        6,
        validation=count,
        log_every=2,
        loggers=(),
        donate=donate,
    )
    assert seen == [9 if donate else 6] * 3
