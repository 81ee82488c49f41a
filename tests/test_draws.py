"""Draws: products that go round several batches, stocBiO and AmIGO as settings."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
import mlox.testing
from mlox._utils.programs import equations

B = np.array([[1.0, 0.5], [-0.4, 0.8], [0.3, -1.0]])
TARGET = np.array([1.0, -2.0, 0.5])
# They do not commute, so that the order of the factors shows.
HESSIANS = np.array(
    [
        [[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 1.5]],
        [[1.0, 0.0, 0.4], [0.0, 2.0, 0.2], [0.4, 0.2, 0.8]],
        [[1.5, -0.6, 0.1], [-0.6, 1.2, 0.0], [0.1, 0.0, 1.0]],
    ]
)
STEP = 0.3
REST = optax.sgd(1e-300)  # updates below the last bit


def fit_loss(y, batch, ctx):
    return 0.5 * y @ (batch @ y) - y @ (B @ ctx.up.params)


def up_loss(x, batch, ctx):
    return 0.5 * jnp.sum((ctx.fit.params - TARGET) ** 2) + 0.1 * jnp.sum(x**2)


def make_pair(method, steps=3, fit=None, up=None, **options):
    lower = mlox.Problem.create(
        name="fit",
        method=method,
        unroll_steps=steps,
        **{
            "params": jnp.zeros(3),
            "tx": REST,
            "loss_fn": fit_loss,
            **(fit or {}),
        },
    )
    upper = mlox.Problem.create(
        name="up",
        **{"params": jnp.ones(2), "tx": REST, "loss_fn": up_loss, **(up or {})},
    )
    return mlox.Engine([upper, lower], {"up": ["fit"]}, {"fit": ["up"]}, **options)


@functools.cache
def pair(method, steps=3):
    return make_pair(method, steps)


def batches_of(fit):
    return {"up": None, "fit": jnp.asarray(fit)}


def slope(engine, fit):
    find = jax.jit(lambda state, fit: engine.hypergradient(state, fit, "up")[1])
    return find(engine.init(), batches_of(fit))


def stocbio(terms, draws):
    return mlox.Implicit(mlox.Neumann(terms, STEP), draws=draws)


def amigo(iterations, draws, warm_start=True):
    solver = mlox.Richardson(iterations, STEP)
    return mlox.Implicit(solver, warm_start=warm_start, draws=draws)


# Laws


def test_products_go_round_the_last_batches_from_the_last_one_backwards():
    """Five products over three draws: Q factors and Q + 1 terms."""
    lam = term = STEP * (np.zeros(3) - TARGET)
    for i in range(5):
        term = term - STEP * HESSIANS[2 - i % 3] @ term
        lam = lam + term
    fit = np.concatenate([HESSIANS[:1], HESSIANS])  # the first of four is not used
    found = slope(pair(stocbio(5, 3), 4), fit)
    np.testing.assert_allclose(found, 0.2 + B.T @ lam, rtol=1e-13)


def test_warm_products_make_one_descent_step_on_each_batch():
    engine = pair(amigo(3, 3))
    state, lam = engine.init(), np.zeros(3)
    for order in ([0, 1, 2], [2, 0, 1]):
        state, _ = engine.step(state, batches_of(HESSIANS[order]))
        for i in order[::-1]:
            lam = lam - STEP * (HESSIANS[i] @ lam + TARGET)
    kept = state["up"].memory["fit"].params["fit"]
    np.testing.assert_allclose(kept, lam, rtol=1e-13)


@pytest.mark.parametrize(
    ("many", "one"),
    [
        (stocbio(4, 3), stocbio(4, 1)),
        pytest.param(amigo(4, 3), amigo(4, 1), marks=pytest.mark.slow),
        pytest.param(amigo(4, 3, False), amigo(4, 1, False), marks=pytest.mark.slow),
    ],
)
def test_one_repeated_batch_is_the_plain_solver_bit_for_bit(many, one):
    fit = batches_of(HESSIANS[[0, 0, 0]])
    parts = {"fit": {"tx": optax.sgd(0.1)}, "up": {"tx": optax.sgd(0.1)}}
    ends = []
    for method in (many, one):
        engine = make_pair(method, **parts)
        step = jax.jit(engine.step)
        state, _ = step(engine.init(), fit)
        state, metrics = step(state, fit)
        ends.append((state["up"].params, state["up"].memory, metrics))
    chex.assert_trees_all_equal(*ends)


def test_mean_over_independent_draws_is_that_of_the_mean_matrix():
    """All windows of two batches: the mean of the products is that of the means."""
    draws, matrices = 2, HESSIANS[:2]
    engine = pair(stocbio(draws, draws), draws)
    windows = [np.stack(w) for w in itertools.product(matrices, repeat=draws)]
    found = np.mean([slope(engine, w) for w in windows], axis=0)
    full = slope(pair(stocbio(draws, 1), 1), matrices.mean(0)[None])
    np.testing.assert_allclose(found, full, rtol=1e-13)
    biased = [slope(pair(stocbio(draws, 1), 1), m[None]) for m in matrices]
    assert np.abs(np.mean(biased, axis=0) - full).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [stocbio(60, 4), amigo(60, 4), amigo(60, 4, False)], ids=repr
)
def test_laws_of_methods_hold(method):
    mlox.testing.check_method(method)


@pytest.mark.slow
def test_products_of_a_matrix_each_serve_a_solver_of_ones_own():
    products = mlox.solvers.Products(lambda i: lambda x: jnp.asarray(HESSIANS)[i] @ x)
    b = jnp.asarray(TARGET)
    for symmetric in (True, False):
        solve = lambda b, symmetric=symmetric: mlox.linear_solve(
            mlox.Neumann(3, STEP, damping=0.1), products, b, symmetric=symmetric
        )[0]
        total = term = TARGET
        for H in HESSIANS:
            term = term - STEP * (H @ term + 0.1 * term)
            total = total + term
        np.testing.assert_allclose(solve(b), STEP * total, rtol=1e-13)
        np.testing.assert_allclose(jax.jacfwd(solve)(b) @ b, solve(b), rtol=1e-12)
        assert np.isfinite(jax.jacrev(solve)(b)).all()


# What is drawn


def test_keys_are_those_of_the_steps():
    def loss(y, batch, ctx):
        weights = 1 + jax.random.uniform(ctx.rng, (3,))
        return 0.5 * jnp.sum(weights * y**2) - y @ (B @ ctx.up.params)

    engine = make_pair(stocbio(2, 2), 3, fit={"loss_fn": loss, "rng": 7})
    key = engine.init()["fit"].rng
    total = term = -TARGET
    for step in (2, 1):
        drawn = jax.random.uniform(jax.random.fold_in(key, step), (3,))
        term = term - STEP * (1 + drawn) * term
        total = total + term
    _, found = engine.hypergradient(engine.init(), {"up": None, "fit": None}, "up")
    np.testing.assert_allclose(found, 0.2 + STEP * B.T @ total, rtol=1e-12)


def test_steps_are_those_of_the_draws():
    def loss(y, batch, ctx):
        H = jnp.asarray(HESSIANS)[ctx.inner_step]
        return 0.5 * y @ (H @ y) - y @ (B @ ctx.up.params)

    engine = make_pair(stocbio(3, 3), fit={"loss_fn": loss})
    _, found = engine.hypergradient(engine.init(), {"up": None, "fit": None}, "up")
    expected = slope(pair(stocbio(3, 3)), HESSIANS)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def sampled(draws, **fit):
    seen = []

    def sample(params, ctx):
        return 0.5 + jax.random.uniform(ctx.rng, (3,))

    def loss(y, batch, ctx):
        jax.debug.callback(lambda x: seen.append(tuple(np.asarray(x).tolist())), batch)
        return 0.5 * jnp.sum(batch * y**2) - y @ (B @ ctx.up.params)

    parts = {"loss_fn": loss, "sample": sample, "rng": 3, **fit}
    return make_pair(stocbio(draws, draws), 1, fit=parts), seen


def test_sampled_draws_are_fresh():
    """With one step in its window a lower can have many draws, never trained on."""
    engine, seen = sampled(4)
    _, found = engine.hypergradient(engine.init(), {"up": None, "fit": None}, "up")
    jax.effects_barrier()
    assert len(set(seen)) == 1 + 4
    again = engine.hypergradient(engine.init(), {"up": None, "fit": None}, "up")[1]
    np.testing.assert_array_equal(found, again)


@pytest.mark.slow
def test_mean_over_sampled_draws_tends_to_that_of_the_mean_matrix():
    engine, _ = sampled(
        4,
        loss_fn=lambda y, batch, ctx: (
            0.5 * jnp.sum(batch * y**2) - y @ (B @ ctx.up.params)
        ),
    )
    state = engine.init()

    def find(seed):
        fit = state["fit"].replace(rng=jax.random.key(seed))
        started = {**state, "fit": fit}
        return engine.hypergradient(started, {"up": None, "fit": None}, "up")[1]

    found = jax.jit(jax.vmap(find))(jnp.arange(4000))
    full = slope(pair(stocbio(4, 1), 1), np.eye(3)[None])
    error = np.abs(found.mean(0) - full)
    assert (error < 5 * found.std(0) / 4000**0.5).all()


def test_stack_of_batches_is_not_copied():
    """Every product takes its batch out of all steps; no part of them is cut out."""
    engine = pair(stocbio(5, 2), 4)
    step = jax.make_jaxpr(engine.step)
    program = step(engine.init(), batches_of(HESSIANS[[0, 1, 2, 0]]))
    made = {
        e.primitive.name
        for e in equations(program)
        for v in e.outvars
        if v.aval.shape in {(2, 3, 3), (4, 3, 3)}
    }
    assert made <= {"stop_gradient"}, made


# With everything else


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [None, 1, 2])
@pytest.mark.parametrize("method", [stocbio(4, 3), amigo(4, 3)], ids=repr)
def test_tasks_equal_separate_problems(at_once, method):
    scales = np.array([1.0, 0.7, 0.9, 1.2])
    parts = {"tx": optax.sgd(0.05)}
    engine = make_pair(
        method,
        fit={"tasks": 4, "tasks_at_once": at_once, **parts},
        up={
            "loss_fn": lambda x, batch, ctx: (
                0.5 * jnp.sum((ctx.fit.params - jnp.array([TARGET] * 4)) ** 2)
            )
        },
    )
    alone = make_pair(
        method,
        fit=parts,
        up={
            "loss_fn": lambda x, batch, ctx: (
                0.5 * jnp.sum((ctx.fit.params - TARGET) ** 2)
            )
        },
    )

    def run(engine, fit):
        step = jax.jit(engine.step)
        state, _ = step(engine.init(), batches_of(fit))
        state, _ = step(state, batches_of(fit))
        return engine.hypergradient(state, batches_of(fit), "up")[1]

    stacked = HESSIANS[:, None] * scales[None, :, None, None]
    expected = sum(run(alone, s * HESSIANS) for s in scales)
    np.testing.assert_allclose(run(engine, stacked), expected, rtol=1e-12)


@pytest.mark.slow
def test_keys_of_tasks_are_those_of_their_steps():
    def loss(y, batch, ctx):
        weights = batch * (1 + jax.random.uniform(ctx.rng, (3,)))
        return 0.5 * jnp.sum(weights * y**2) - y @ (B @ ctx.up.params)

    parts = {"loss_fn": loss, "rng": 7, "tasks": 2}
    up = {"loss_fn": lambda x, batch, ctx: jnp.sum(ctx.fit.params @ TARGET)}
    engine = make_pair(stocbio(2, 2), 2, fit=parts, up=up)
    found = slope(engine, np.ones((2, 2)))
    key, expected = engine.init()["fit"].rng, np.zeros(2)
    for task in range(2):
        total = term = TARGET
        for step in (1, 0):
            own = jax.random.split(jax.random.fold_in(key, step), 2)[task]
            term = term - STEP * (1 + jax.random.uniform(own, (3,))) * term
            total = total + term
        expected += STEP * B.T @ total
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.slow
def test_run_resumes_bit_for_bit(tmp_path):
    engine = make_pair(amigo(3, 3), fit={"tx": optax.sgd(0.1)})
    data = {"fit": [jnp.asarray(HESSIANS[i % 3]) for i in range(12)]}
    run = functools.partial(engine.run, loggers=(), progress=False, train_iters=4)
    whole, _ = run(engine.init(), data)
    many, _ = run(engine.init(), data, cycles_per_dispatch=2)
    chex.assert_trees_all_close(many, whole, rtol=1e-14)
    folder = mlox.Checkpoint(tmp_path, every=2)
    run(engine.init(), data, train_iters=2, checkpoint=folder)
    resumed, _ = run(engine.init(), data, checkpoint=folder, resume=True)
    chex.assert_trees_all_equal(resumed, whole)


@pytest.mark.slow
def test_look_ahead_that_is_rolled_back_has_its_draws():
    engine = make_pair(stocbio(3, 3), fit={"tx": optax.sgd(0.1)}, roll_back=True)
    plain = make_pair(stocbio(3, 3), fit={"tx": optax.sgd(0.1)})
    rolled, _ = engine.step(engine.init(), batches_of(HESSIANS))
    ahead, _ = plain.step(plain.init(), batches_of(HESSIANS))
    chex.assert_trees_all_close(rolled["up"], ahead["up"], rtol=1e-14)


@pytest.mark.slow
def test_hypergradient_is_differentiable():
    """Where one batch is repeated its derivative is that of the plain solver."""
    ends = []
    for draws in (3, 1):
        engine = pair(stocbio(200, draws))

        def slope_at(x, engine=engine):
            state = engine.init()
            moved = {**state, "up": state["up"].replace(params=x)}
            fit = batches_of(HESSIANS[[0, 0, 0]])
            return engine.hypergradient(moved, fit, "up")[1]

        ends.append([f(slope_at)(jnp.ones(2)) for f in (jax.jacfwd, jax.jacrev)])
    chex.assert_trees_all_close(*ends, rtol=1e-12)
    inverse = np.linalg.solve(HESSIANS[0], B)
    exact = inverse.T @ inverse + 0.2 * np.eye(2)
    np.testing.assert_allclose(ends[0][0], exact, rtol=1e-8)


# Where they are refused


def chain(method, coupling="total"):
    parts = {"params": jnp.ones(()), "tx": optax.sgd(0.1), "unroll_steps": 2}
    losses = {
        "top": lambda p, batch, ctx: (ctx.mid.params - 1.0) ** 2,
        "mid": lambda p, batch, ctx: (ctx.low.params - p * ctx.top.params) ** 2 + p**2,
        "low": lambda p, batch, ctx: (p - ctx.mid.params) ** 2,
    }
    top, mid, low = (
        mlox.Problem.create(name=name, loss_fn=loss, method=method, **parts)
        for name, loss in losses.items()
    )
    return mlox.Engine(
        [top, mid, low],
        {"top": ["mid"], "mid": ["low"]},
        {"low": ["mid"], "mid": ["top"]},
        coupling=coupling,
    )


def test_towers_and_short_windows_are_refused():
    general = mlox.Implicit(AnySystem(), draws=2)
    with pytest.raises(ValueError, match=r"one system with its lowers.*Leave draws"):
        chain(general)
    chain(general, coupling="direct")
    with pytest.raises(ValueError, match=r"asks for 4 draws.*unroll_steps=4"):
        make_pair(stocbio(4, 4), steps=3)


class AnySystem:
    """A solver of all systems whose products may differ."""

    def __call__(self, matvec, b, guess=None):
        return mlox.solvers.product_at(matvec, 1)(b), {}


mlox.solvers.takes_draws.register(AnySystem, lambda solver: True)


def test_solvers_that_need_one_matrix_are_refused():
    for solver in (None, mlox.CG(), lambda matvec, b, guess: (b, {})):
        with pytest.raises(ValueError, match=r"draws=2 .* Use mlox\.Neumann"):
            mlox.Implicit(solver, draws=2)
    with pytest.raises(ValueError, match=r"refine=1 .* draws=2"):
        mlox.Implicit(mlox.Neumann(), refine=1, draws=2)
    products = mlox.solvers.Products(lambda i: lambda x: x)
    with pytest.raises(ValueError, match="needs one for all its iterations"):
        mlox.linear_solve(mlox.CG(), products, jnp.ones(2))
