"""Estimators of gradients, and what an optimizer is given besides gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
import mlox._cycle.update
from mlox.estimators import page, storm

RATE = 0.1
DATA = np.array([3.0, -1.0, 2.0, 0.5, -2.0])


def fit_loss(y, batch, ctx):
    return jnp.sum(jnp.cosh(y["w"] - batch)) + 0.5 * jnp.sum(y["b"] ** 2 * batch**2)


def slope(y, batch):
    return {"w": np.sinh(y["w"] - batch), "b": y["b"] * batch**2}


def start():
    return {"w": jnp.array([0.5, -0.5]), "b": jnp.ones(())}


def make_fit(*parts, **options):
    fit = mlox.Problem.create(
        name="fit",
        tx=optax.chain(*parts, optax.sgd(RATE)),
        **{"params": start(), "loss_fn": fit_loss, **options},
    )
    return mlox.Engine([fit])


def train(engine, data):
    def step(state, batch):
        state, _ = engine.step(state, {"fit": batch[None]})
        return state, state["fit"].params

    return jax.jit(lambda data: jax.lax.scan(step, engine.init(), data)[1])(data)


def follow(data, weight):
    """Return the parameters of the recursion with weights w_t, by hand."""
    y, path, d, before = jax.tree.map(np.asarray, start()), [], None, None
    for t, batch in enumerate(data):
        g = slope(y, batch)
        if t > 0:
            old, w = slope(before, batch), weight(t)
            g = {k: g[k] + w * (d[k] - old[k]) for k in g}
        d, before = g, y
        y = {k: y[k] - RATE * d[k] for k in y}
        path.append(y)
    return jax.tree.map(lambda *x: np.stack(x), *path)


# Laws


def test_storm_takes_both_gradients_on_one_batch():
    found = train(make_fit(storm(0.3)), DATA)
    chex.assert_trees_all_close(found, follow(DATA, lambda t: 0.7), rtol=1e-13)


def test_page_sums_differences_from_one_coin_to_the_next():
    coins = [
        jax.random.bernoulli(jax.random.fold_in(jax.random.key(5), t), 0.4)
        for t in range(len(DATA))
    ]
    assert 0 < sum(map(bool, coins[1:])) < len(DATA) - 1
    found = train(make_fit(page(0.4, seed=5)), DATA)
    expected = follow(DATA, lambda t: 0.0 if coins[t] else 1.0)
    chex.assert_trees_all_close(found, expected, rtol=1e-13)


@pytest.mark.parametrize("estimator", [storm(1.0), storm(lambda t: 1.0), page(1.0)])
def test_without_a_memory_it_is_the_plain_gradient_bit_for_bit(estimator):
    expected = train(make_fit(), DATA)
    chex.assert_trees_all_equal(train(make_fit(estimator), DATA), expected)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [storm(0.2), page(0.2)])
def test_where_all_draws_are_one_it_is_the_exact_gradient(estimator):
    data = np.full(20, 0.7)
    expected = train(make_fit(), data)
    found = train(make_fit(estimator), data)
    chex.assert_trees_all_close(found, expected, rtol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "less"), [(storm(0.02), 0.05), (page(0.02), 2)])
def test_error_of_the_estimate_is_that_of_averages(estimator, less):
    """400 runs; at rest the variance falls to a / (2 - a) of that of a gradient.

    That of PAGE stays: its sums begin with one batch. Without a correction for the
    moves, the sums of differences would drift away.
    """

    def loss(y, batch, ctx):
        noise = jax.random.normal(ctx.rng, y.shape)
        return jnp.sum(0.5 * y**2 + 0.1 * y**4 + (1 + 0.1 * y) * noise * y)

    fit = mlox.Problem.create(
        name="fit",
        params=jnp.ones(4),
        tx=optax.chain(estimator, optax.sgd(1e-3)),
        loss_fn=loss,
        rng=0,
    )
    engine = mlox.Engine([fit])

    def error(seed):
        state = engine.init()
        state = {"fit": state["fit"].replace(rng=jax.random.key(seed))}
        step = lambda state, _: (engine.step(state, {"fit": None})[0], None)
        state, _ = jax.lax.scan(step, state, length=300)
        estimate = state["fit"].opt_state[0].estimate
        y = state["fit"].opt_state[0].params
        return estimate - (y + 0.4 * y**3)

    errors = jax.jit(jax.vmap(error))(jnp.arange(400))
    assert np.mean(errors**2) < less
    assert np.abs(errors.mean()) < 5 * errors.std() / errors.size**0.5


def test_keys_of_both_gradients_are_those_of_the_step():
    """A noise that adds the same to both cancels in their difference."""

    def loss(y, batch, ctx):
        return 0.5 * y**2 + y * jax.random.normal(ctx.rng)

    fit = mlox.Problem.create(
        name="fit",
        params=jnp.ones(()),
        tx=optax.chain(page(1e-9), optax.sgd(RATE)),
        loss_fn=loss,
        rng=0,
    )
    engine = mlox.Engine([fit])
    state = engine.init()
    noise = jax.random.normal(jax.random.fold_in(state["fit"].rng, 0))
    y = 1.0
    for _ in range(4):
        state, _ = engine.step(state, {"fit": None})
        y = y - RATE * (y + noise)
    np.testing.assert_allclose(state["fit"].params, y, rtol=1e-13)


# With everything else


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [storm(0.3), page(0.4, seed=5)])
def test_tasks_equal_separate_problems(estimator):
    shifts = np.array([0.0, 0.3, -0.5])
    many = make_fit(estimator, tasks=3)
    found = train(many, DATA[:, None] + shifts)
    for i, shift in enumerate(shifts):
        alone = train(make_fit(estimator), DATA + shift)
        task = jax.tree.map(lambda x, i=i: x[:, i], found)
        chex.assert_trees_all_close(task, alone, rtol=1e-13)


@pytest.mark.slow
def test_frozen_parameters_are_not_estimated():
    mask = {"trainable": lambda params: {"w": True, "b": False}}
    found = train(make_fit(storm(0.3), **mask), DATA)
    expected = follow(DATA, lambda t: 0.7)
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-13)
    assert (found["b"] == 1).all()
    masked = optax.masked(storm(0.3), {"w": True, "b": False})
    np.testing.assert_allclose(
        train(make_fit(masked), DATA)["w"], expected["w"], rtol=1e-13
    )


@pytest.mark.slow
def test_state_is_split_over_devices_as_parameters_are():
    engine = make_fit(storm(0.3))
    state = mlox.shard(engine, engine.init(), jax.make_mesh((1,), ("data",)))
    for batch in DATA:
        state, _ = engine.compile()(state, {"fit": jnp.array([batch])})
    expected = follow(DATA, lambda t: 0.7)
    last = jax.tree.map(lambda x: x[-1], expected)
    chex.assert_trees_all_close(state["fit"].params, last, rtol=1e-13)


H = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 1.5]])
B = np.array([[1.0, 0.5], [-0.4, 0.8], [0.3, -1.0]])


def make_pair(up_tx, method, fit=None, up=None):
    """A lower H y = B x, and the upper |y|^2 / 2 + y B x + |x|^2 / 2."""
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.zeros(3),
        tx=optax.sgd(0.2),
        method=method,
        loss_fn=lambda y, batch, ctx: 0.5 * y @ (H @ y) - y @ (B @ ctx.up.params),
        **(fit or {}),
    )
    up = mlox.Problem.create(
        name="up",
        params=jnp.ones(2),
        tx=up_tx,
        loss_fn=lambda x, batch, ctx: (
            0.5 * jnp.sum(ctx.fit.params**2)
            + ctx.fit.params @ (B @ x)
            + 0.5 * jnp.sum(x**2)
        ),
        **(up or {}),
    )
    return mlox.Engine([up, fit], {"up": ["fit"]}, {"fit": ["up"]})


NONE = {"up": None, "fit": None}


@pytest.mark.parametrize(
    "method",
    [
        mlox.Implicit(mlox.Dense()),
        pytest.param(mlox.SOBA(0.3), marks=pytest.mark.slow),
    ],
)
def test_gradient_of_an_upper_is_its_hypergradient_at_the_present_answers(method):
    a = 0.3
    engine = make_pair(optax.chain(storm(a), optax.sgd(RATE)), method)
    state, step = engine.init(), jax.jit(engine.step)
    x, y, old, d, memory = np.ones(2), np.zeros(3), None, None, np.zeros(3)

    def hypergradient(x, y):
        v = y + B @ x
        lam = memory if isinstance(method, mlox.SOBA) else np.linalg.solve(H, v)
        return B.T @ y + x + B.T @ lam

    for t in range(6):
        y = y - 0.2 * (H @ y - B @ x)
        g = hypergradient(x, y)
        d = g if t == 0 else g + (1 - a) * (d - hypergradient(old, y))
        memory = memory - 0.3 * (H @ memory - (y + B @ x))
        old, x = x, x - RATE * d
        state, _ = step(state, NONE)
    np.testing.assert_allclose(state["up"].params, x, rtol=1e-12)


@pytest.mark.slow
def test_steps_are_differentiated_through_their_estimates():
    """An unrolled lower with STORM, against central differences."""

    def loss(y, batch, ctx):
        return jnp.sum(jnp.cosh(y - batch)) * jnp.exp(ctx.up.params)

    fit = mlox.Problem.create(
        name="fit",
        params=jnp.zeros(()),
        tx=optax.chain(storm(0.3), optax.sgd(RATE)),
        loss_fn=loss,
        method=mlox.Unrolled(),
        unroll_steps=5,
    )
    up = mlox.Problem.create(
        name="up",
        params=jnp.zeros(()),
        tx=optax.sgd(0.1),
        loss_fn=lambda x, batch, ctx: (ctx.fit.params - 1) ** 2,
    )
    engine = mlox.Engine([up, fit], {"up": ["fit"]}, {"fit": ["up"]})
    batches = {"up": None, "fit": jnp.asarray(DATA) / 3}

    def at(x):
        state = engine.init()
        state = {**state, "up": state["up"].replace(params=jnp.asarray(x))}
        return engine.hypergradient(state, batches, "up")

    right = (at(1e-5)[0] - at(-1e-5)[0]) / 2e-5
    np.testing.assert_allclose(at(0.0)[1], right, rtol=1e-7)


# What an optimizer is given


def record(seen):
    """Return a transformation that notes its arguments, and what the functions give."""

    def update(updates, state, params, *, value, grad, value_fn, grad_fn, **extra):
        assert not extra
        slopes = grad_fn(params)
        jax.debug.callback(
            lambda *x: seen.append(x), value, grad, value_fn(params), slopes
        )
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [None, 2])
def test_functions_at_the_present_parameters_are_value_and_gradient(tasks):
    seen = []
    engine = make_fit(record(seen), tasks=tasks)
    batch = DATA[:1] if tasks is None else DATA[None, :2]
    engine.step(engine.init(), {"fit": jnp.asarray(batch)})
    jax.effects_barrier()
    assert len(seen) == (tasks or 1)
    for value, grad, again, slopes in seen:
        np.testing.assert_allclose(value, again, rtol=1e-14)
        chex.assert_trees_all_close(grad, slopes, rtol=1e-14)


@pytest.mark.parametrize(
    "tasks", [None, pytest.param(2, marks=pytest.mark.slow)], ids=str
)
def test_functions_that_are_not_called_cost_nothing(tasks, monkeypatch):
    batch = jnp.asarray(DATA[:1] if tasks is None else DATA[None, :2])

    def build():
        engine = make_fit(optax.scale_by_adam(), tasks=tasks)
        args = engine.init(), {"fit": batch}
        if tasks is None:
            return str(jax.make_jaxpr(engine.step)(*args))
        compiled = jax.jit(lambda *args: engine.step(*args)).lower(*args).compile()
        return compiled.cost_analysis()["flops"]

    found = build()
    none = lambda plan, problem, point: {}
    monkeypatch.setattr(mlox._cycle.update, "functions_elsewhere", none)
    assert build() == found


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [None, 2])
def test_line_searches_of_optax_work(tasks):
    def loss(y, batch, ctx):
        a, b = y[0], y[1]
        return (batch - a) ** 2 + 100 * (b - a**2) ** 2

    fit = mlox.Problem.create(
        name="fit",
        params=jnp.array([-1.2, 1.0]),
        tx=optax.lbfgs(),
        loss_fn=loss,
        tasks=tasks,
    )
    engine = mlox.Engine([fit])
    batch = jnp.ones(1) if tasks is None else jnp.array([[1.0, 0.5]])
    step = lambda state, _: (engine.step(state, {"fit": batch})[0], None)
    run = jax.jit(functools.partial(jax.lax.scan, step, length=60))
    state, _ = run(engine.init())
    right = np.stack([batch[0], batch[0] ** 2], axis=-1)
    np.testing.assert_allclose(state["fit"].params, right, rtol=1e-6)


def test_optimizers_that_ask_for_what_an_upper_has_not_are_told():
    implicit, unrolled = mlox.Implicit(), mlox.Unrolled()
    refuse = functools.partial(pytest.raises, ValueError)
    with refuse(match=r"'up': tx called value_fn.*\['fit'\].*linesearch=None"):
        engine = make_pair(optax.lbfgs(), implicit)
        engine.step(engine.init(), NONE)
    with refuse(match=r"'up': tx called grad_fn.*\['fit'\].*Use implicit methods"):
        engine = make_pair(storm(0.1), unrolled)
        engine.step(engine.init(), NONE)
    grads = start()
    with pytest.raises(TypeError, match="needs the parameters and grad_fn="):
        storm(0.1).update(grads, storm(0.1).init(grads), grads)


@pytest.mark.slow
def test_uppers_with_tasks_and_lowers_have_no_gradient_elsewhere():
    tasks = {"tasks": 2}
    engine = make_pair(storm(0.1), mlox.Implicit(), fit=tasks, up=tasks)
    with pytest.raises(ValueError, match=r"tx called grad_fn.*without tasks= of 'up'"):
        engine.step(engine.init(), NONE)


def test_numbers_are_checked():
    for wrong in (0.0, 1.5, -1):
        with pytest.raises(ValueError, match=r"storm: decay is .*0 < a <= 1"):
            storm(wrong)
        with pytest.raises(ValueError, match=r"page: probability is .*0 < p <= 1"):
            page(wrong)
    with pytest.raises(TypeError, match="page: seed is"):
        page(0.5, seed=0.5)
