"""Chunks of tasks: the same numbers and keys as all tasks at once, in less memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale

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
        name="hyper",
        params=jnp.array([0.3, 0.6]),
        tx=optax.sgd(0.1),
        loss_fn=hyper_loss,
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
        pytest.param(method, id=name, marks=() if name == "unrolled" else slow)
        for name, method in METHODS.items()
    ],
)
def test_chunks_give_the_same_as_all_tasks_at_once(method):
    """Keys, indices, states, `reset`, `sample`, masks, projection and telemetry."""
    assert_same(two_levels(2, method), two_levels(None, method))


# Deeper graphs


def pull(params, x):
    return ((params - x) ** 2).sum() / 2 + 0.05 * (params**4).sum()


def three_levels(at_once, mid, low, shared=False, **options):
    """Build top over mid over low, the last two with tasks, or mid without."""
    tasks = {"tasks": TASKS, "tasks_at_once": at_once}

    def top_loss(params, batch, ctx):
        return ((ctx.mid.params.reshape(-1) - params) ** 2).mean() + 0.1 * (
            params**2
        ).sum()

    def mid_loss(params, batch, ctx):
        away = jnp.mean((ctx.low.params - 0.7) ** 2) * (1 + (params**2).sum())
        return pull(params, ctx.top.params) + away

    def low_loss(params, batch, ctx):
        noise = 0.1 * jax.random.normal(ctx.rng) + 0.1 * ctx.task_index.astype(float)
        inner = 0.1 * ctx.inner_step.astype(float)
        return pull(params, ctx.mid.params + noise + inner) + 0.1 * params.sum()

    def make(name, loss_fn, **own):
        settings = {"params": jnp.full(1, 0.1), "tx": optax.sgd(0.1), **options, **own}
        return mlox.Problem.create(name=name, loss_fn=loss_fn, **settings)

    top = make("top", top_loss)
    own = {} if shared else {"tasks": TASKS}
    middle = make("mid", mid_loss, method=mid, unroll_steps=2, **own)
    lowest = make("low", low_loss, method=low, unroll_steps=3, rng=0, **tasks)
    return mlox.Engine(
        [top, middle, lowest],
        u2l={top: [middle], middle: [lowest]},
        l2u={middle: [top], lowest: [middle]},
        roll_back=shared,
    )


DENSE = mlox.Implicit(mlox.Dense())


@slow
@pytest.mark.parametrize("shared", [False, True], ids=["tasks", "shared"])
@pytest.mark.parametrize(
    ("mid", "low"),
    [
        (DENSE, DENSE),
        (DENSE, mlox.Unrolled()),  # whose window is run again in the residual of mid
        (mlox.Unrolled(), mlox.Implicit(mlox.CG(1))),
        (mlox.Implicit(mlox.CG(1)), mlox.Unrolled()),  # one system for all tasks
        (mlox.Detached(), mlox.Implicit(mlox.CG(1), warm_start=True)),  # a memory
        (mlox.Unrolled(), mlox.Unrolled()),
    ],
    ids=str,
)
def test_windows_of_two_levels_are_run_in_chunks(mid, low, shared):
    """Both with tasks; or only the loops below a level without."""
    one, other = (three_levels(k, mid, low, shared) for k in (2, None))
    assert_same(one, other)


def beside(at_once, **options):
    """Build a lower with tasks, and one without that reads all of them."""

    def upper_loss(params, batch, ctx):
        return (params - ctx.mean.params) ** 2 + jnp.sum(ctx.fit.params**2)

    def mean_loss(params, batch, ctx):
        return (
            params - jnp.mean(ctx.fit.params)
        ) ** 2 + 0.1 * params * ctx.upper.params

    def fit_loss(params, batch, ctx):
        return (params - ctx.upper.params - ctx.task_index.astype(float)) ** 2

    def make(name, loss_fn, **own):
        settings = {"params": jnp.full((), 0.1), "tx": optax.sgd(0.1), **own}
        return mlox.Problem.create(name=name, loss_fn=loss_fn, **settings)

    inner = {"method": mlox.Unrolled(), "unroll_steps": 3}
    upper = make("upper", upper_loss)
    mean = make("mean", mean_loss, **inner)
    tasks = {"tasks": TASKS, "tasks_at_once": at_once}
    fit = make("fit", fit_loss, **inner, **tasks, **options)
    return mlox.Engine(
        [upper, mean, fit],
        u2l={upper: [mean, fit]},
        l2u={mean: [upper], fit: [upper, mean]},
    )


@slow
@pytest.mark.parametrize("method", [mlox.Forward(), mlox.Unrolled(levels=2)], ids=str)
def test_chunks_learn_the_learning_rates_of_tasks(method):
    """Hyperparameters of the step and of the task, in loops of all kinds."""

    def built(at_once):
        def upper_loss(params, batch, ctx):
            return jnp.mean((ctx.fit.params - 1.0) ** 2) + 0.1 * (params**2).sum()

        def lower_loss(params, batch, ctx):
            return pull(params, ctx.task_index.astype(float) + ctx.upper.params)

        def rates(ctx):
            factor = 1.0 + 0.1 * ctx.task_index.astype(float)
            return {"learning_rate": factor * jnp.exp(ctx.upper.params[ctx.inner_step])}

        upper = mlox.Problem.create(
            name="upper",
            params=jnp.full(STEPS, -2.0),
            tx=optax.sgd(0.1),
            loss_fn=upper_loss,
        )
        fit = mlox.Problem.create(
            name="fit",
            params=jnp.ones(STEPS),
            tx=optax.inject_hyperparams(optax.sgd)(0.1),
            loss_fn=lower_loss,
            hyperparams=rates,
            method=method,
            unroll_steps=STEPS,
            tasks=TASKS,
            tasks_at_once=at_once,
        )
        return mlox.Engine([upper, fit], u2l={upper: [fit]}, l2u={fit: [upper]})

    assert_same(built(2), built(None))


@slow
def test_costs_are_in_chunks_where_others_step_in_between():
    assert_same(beside(2), beside(None))


@slow
def test_costs_are_in_chunks_where_one_loss_scale_serves_all():
    scale = DynamicScale(growth_interval=2, scale=jnp.float32(8.0))
    assert_same(*(beside(k, loss_scale=scale) for k in (2, None)))


@slow
@pytest.mark.parametrize("method", ["unrolled", "cg"])
def test_the_hypergradient_in_chunks_can_be_differentiated_again(method):
    def slope(at_once):
        engine = two_levels(at_once, METHODS[method])
        state = engine.init()
        batches = dict.fromkeys(engine.names)

        def total(params):
            moved = {**state, "hyper": state["hyper"].replace(params=params)}
            return engine.hypergradient(moved, batches, "hyper")[1].sum()

        return quick(jax.hessian(total))(state["hyper"].params)

    assert_close(slope(2), slope(None))


@slow
def test_problems_above_may_have_the_tasks_as_well():
    """Then all of the cycle is about tasks, which have nothing to do with another."""

    def built(at_once):
        def upper_loss(params, batch, ctx):
            return pull(ctx.fit.params, 1.0 + batch) + 0.1 * (params**2).sum()

        def lower_loss(params, batch, ctx):
            return pull(params, ctx.upper.params + batch)

        settings = {"params": jnp.ones(2), "tx": optax.sgd(0.1), "tasks": TASKS}
        upper = mlox.Problem.create(name="upper", loss_fn=upper_loss, **settings)
        fit = mlox.Problem.create(
            name="fit",
            loss_fn=lower_loss,
            method=mlox.Unrolled(),
            unroll_steps=STEPS,
            tasks_at_once=at_once,
            **settings,
        )
        return mlox.Engine([upper, fit], u2l={upper: [fit]}, l2u={fit: [upper]})

    draw = np.random.default_rng(0).normal
    batches = {"upper": draw(size=(1, TASKS, 2)), "fit": draw(size=(STEPS, TASKS, 2))}
    assert_same(built(2), built(None), batches)


# Memory


@slow
def test_the_memory_of_a_window_is_that_of_a_chunk():
    """Compiled, as of a job of 32 tasks, one at a time."""

    def temporaries(at_once):
        def loss_fn(params, batch, ctx):
            return jnp.mean((jnp.tanh(batch @ params) - 1.0) ** 2)

        start = jnp.zeros((16, 16))
        init = mlox.Problem.create(
            name="init",
            params=start,
            tx=optax.sgd(0.1),
            loss_fn=lambda params, batch, ctx: ctx.fit(batch).mean(),
        )
        fit = mlox.Problem.create(
            name="fit",
            params=start,
            tx=optax.sgd(0.1),
            loss_fn=loss_fn,
            apply_fn=lambda params, batch: jnp.mean((batch @ params) ** 2),
            reset=lambda params, ctx: ctx.init.params,
            method=mlox.Unrolled(checkpoint="none"),
            unroll_steps=16,
            tasks=32,
            tasks_at_once=at_once,
        )
        engine = mlox.Engine([init, fit], u2l={init: [fit]}, l2u={fit: [init]})
        batches = {"init": jnp.ones((1, 32, 64, 16)), "fit": jnp.ones((16, 32, 64, 16))}
        step = jax.jit(engine.step)
        memory = step.lower(engine.init(), batches).compile().memory_analysis()
        return memory.temp_size_in_bytes

    assert temporaries(1) < 0.1 * temporaries(None)


# What is refused


@pytest.mark.parametrize("at_once", [0, -1, 1.5, True])
def test_tasks_at_once_are_counted(at_once):
    with pytest.raises(ValueError, match=r"'fit': tasks_at_once is .* positive int"):
        fitted(at_once, mlox.Unrolled())


@pytest.mark.parametrize(("at_once", "tasks"), [(3, 4), (8, 4)])
def test_chunks_make_up_all_tasks(at_once, tasks):
    match = r"tasks_at_once is \d, which does not divide tasks=4; .* one of \[1, 2, 4\]"
    with pytest.raises(ValueError, match=match):
        fitted(at_once, mlox.Unrolled(), tasks)
    with pytest.raises(ValueError, match=match):
        fitted(None, mlox.Unrolled(), tasks).replace(tasks_at_once=at_once)


def test_chunks_need_tasks():
    with pytest.raises(ValueError, match=r"tasks_at_once is 2, but .* Pass tasks="):
        fitted(2, mlox.Unrolled(), tasks=None)


def test_explain_draw_and_repr_tell_the_chunks():
    engine = two_levels(2, mlox.Unrolled())
    assert "tasks         4, 2 at once" in engine.explain()
    assert "4 tasks, 2 at once" in engine.mermaid()
    assert "4 tasks, 2 at once" in repr(engine)
    assert "4 tasks, 2 at once" in engine.draw()
    assert "tasks=4, tasks_at_once=2" in repr(engine.problems[1])
