"""Chunks of tasks: the same numbers and keys as all tasks at once, in less memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

from .small import clip_smoothly

TASKS, STEPS = 4, 3
METHODS = {
    "cg": mlox.Implicit(mlox.CG(2)),
    "detached": mlox.Detached(),
    "difference": mlox.FiniteDifference(0.01),
    "gmres": mlox.Implicit(mlox.GMRES(2)),
    "sama": mlox.SAMA(),
    "truncated": mlox.Unrolled(last_steps=2),
    "unrolled": mlox.Unrolled(),
}
slow = pytest.mark.slow
assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-12)


def quick(function):
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def start(params, ctx):
    """Start at what the upper learns, a little beside for each task."""
    away = 0.01 * ctx.task_index.astype(float) + 0.01 * jax.random.normal(ctx.rng, (2,))
    return {**params, "w": ctx.hyper.params + away}


def noisy_error(params, x):
    return (params["w"] * x - 1.0) ** 2 + 0.1 * params["w"] ** 4 + params["fixed"] ** 2


def fit_loss(params, batch, ctx):
    """Use all that a task has: data, its number, its key and its mutable state."""
    drawn, x = batch
    noise = jax.random.normal(ctx.rng, (2,)) + ctx.task_index.astype(float)
    noise += ctx.model_state
    error = noisy_error(params, drawn + x + 0.1 * noise).mean()
    away = ((params["w"] - ctx.hyper.params) ** 2).sum()
    state = 0.9 * ctx.model_state + 0.1 * jax.lax.stop_gradient(error)
    return {"loss": error + away, "away": away, "model_state": state}


def hyper_loss(params, batch, ctx):
    every = ctx.fit(jnp.linspace(0.5, 1.5, TASKS))
    return every.mean() + ctx.fit.model_state.mean() + 0.1 * (params**2).sum()


def fitted(at_once, method, tasks=TASKS):
    """Build a lower that uses whatever a problem with tasks can use."""
    return mlox.Problem.create(
        name="fit",
        params={"w": jnp.ones(2), "fixed": jnp.full(2, 0.1)},
        tx=optax.chain(clip_smoothly(0.3), optax.adam(0.1, eps_root=1e-16)),
        loss_fn=fit_loss,
        apply_fn=lambda params, x: noisy_error(params, x).mean(),
        method=method,
        unroll_steps=STEPS,
        tasks=tasks,
        tasks_at_once=at_once,
        sample=lambda params, ctx: (jax.random.normal(ctx.rng, (2,)), jnp.float64(0.3)),
        reset=start,
        project=lambda p: jax.tree.map(lambda x: jnp.clip(x, -2.0, 2.0), p),
        trainable=lambda p: {"w": True, "fixed": False},
        model_state=jnp.float64(0.0),
        rng=1,
    )


def two_levels(at_once, method):
    hyper = mlox.Problem.create(
        name="hyper", params=jnp.array([0.3, 0.6]), tx=optax.sgd(0.1), loss_fn=hyper_loss
    )
    fit = fitted(at_once, method)
    return mlox.Engine(
        [hyper, fit], u2l={hyper: [fit]}, l2u={fit: [hyper]}, telemetry=True
    )


def stepped(engine, batches=None, cycles=2):
    batches = dict.fromkeys(engine.names) if batches is None else batches
    state, metrics = engine.init(), {}
    step = quick(engine.step)
    for _ in range(cycles):
        state, metrics = step(state, batches)
    return state, metrics


def assert_same(engine, other, batches=None):
    """Assert that two engines lead to the same states and metrics."""
    found, expected = stepped(engine, batches), stepped(other, batches)
    arrays = [jax.tree.leaves(part) for part in (found, expected)]
    chex.assert_trees_all_equal_shapes_and_dtypes(*arrays)
    for one, two in zip(*arrays, strict=True):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, two = jax.random.key_data(one), jax.random.key_data(two)
        assert_close(one, two)
    assert sorted(found[1]) == sorted(expected[1])


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, id=name, marks=() if name in ("cg", "unrolled") else slow)
        for name, method in METHODS.items()
    ],
)
def test_chunks_give_the_same_as_all_tasks_at_once(method):
    """Keys, indices, states, `reset`, `sample`, masks, projection and telemetry."""
    assert_same(two_levels(2, method), two_levels(None, method))
