"""Evolution strategies: closed forms, truncated windows, and what copies share."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

EDGES = {"x": ["y"]}, {"y": ["x"]}
NO_DATA = {"x": None, "y": None}
SIGNS = jax.random.rademacher
TIMES = 4.0  # standard errors


def follow(params, batch, ctx):
    """Half the squared distance to x: one step of rate 1 leads there."""
    return 0.5 * ((params - ctx.x.params) ** 2).sum()


def make(loss_fn, at, lower=None, upper=None, **options):
    """Make an engine whose lower is copied, and begins each window anew at zero."""
    at = jnp.asarray(at)
    given = {
        "params": jnp.zeros_like(at),
        "tx": optax.sgd(1.0),
        "loss_fn": follow,
        "reset": lambda params, ctx: jnp.zeros_like(params),
        "rng": 0,
        **(lower or {}),
    }
    problems = [
        mlox.Problem.create(
            name="x", params=at, tx=optax.sgd(0.1), loss_fn=loss_fn, **(upper or {})
        ),
        mlox.Problem.create(name="y", **given),
    ]
    chosen = {"pairs": 1, "sigma": 0.5, **options}
    return mlox.Engine(*mlox.evolve(problems, *EDGES, lower="y", **chosen))


def slope_of(engine, batches=NO_DATA, state=None):
    state = engine.init() if state is None else state
    return engine.hypergradient(state, batches, "x")[1]


# The linear-quadratic window: for a quadratic F with the gradient g the estimate of a
# pair is e <e, g>, e ~ N(0, I), with the mean g and the covariance |g|^2 I + g g^T.

H = jnp.array([[1.0, 0.3], [0.3, 0.5]])
STEPS = 4


def solve_slowly(params, batch, ctx):
    x = ctx.x.params
    return 0.5 * params @ (H @ params) - params @ jnp.stack([x["a"], x["b"][0]])


def judge(params, batch, ctx):
    direct = 0.3 * params["a"] * params["b"][0]
    return ((ctx.y.params - jnp.array([1.0, -2.0])) ** 2).sum() + direct


def make_quadratic():
    x = mlox.Problem.create(
        name="x",
        params={"a": jnp.array(0.5), "b": jnp.array([-1.0])},
        tx=optax.sgd(0.1),
        loss_fn=judge,
    )
    y = mlox.Problem.create(
        name="y",
        params=jnp.zeros(2),
        tx=optax.sgd(0.5, momentum=0.5),
        loss_fn=solve_slowly,
        reset=lambda params, ctx: 0.5 * jnp.ones(2) * ctx.x.params["a"],
        method=mlox.Unrolled(),
        unroll_steps=STEPS,
        rng=0,
    )
    return [x, y]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@functools.cache
def exact_slope():
    engine = mlox.Engine(make_quadratic(), *EDGES)
    return flat(slope_of(engine, NO_DATA))


@pytest.mark.parametrize(
    "pairs", [5_000, pytest.param(500_000, marks=pytest.mark.slow)]
)
def test_estimate_is_the_unrolled_gradient_for_a_linear_quadratic_window(pairs):
    """Also its part through `reset`, and the direct one; the error is 1/sqrt(pairs)."""
    graph = mlox.evolve(make_quadratic(), *EDGES, lower="y", pairs=pairs, sigma=0.7)
    found = flat(slope_of(mlox.Engine(*graph)))
    g = exact_slope()
    errors = np.sqrt((g @ g + g**2) / pairs)
    assert (abs(found - g) < TIMES * errors).all()
    assert errors.max() < 0.1 * np.linalg.norm(g)


def test_estimate_is_the_gradient_of_the_smoothed_loss_for_a_cube():
    """F = x y^2 with y = x, through the window and directly: 3 x^2 + 3 sigma^2."""
    x, sigma, pairs = 1.5, 0.5, 20_000
    engine = make(
        lambda params, batch, ctx: params * ctx.y.params**2,
        x,
        pairs=pairs,
        sigma=sigma,
    )
    # A pair estimates e^2 (3 x^2 + s^2 e^2), with E e^4, e^6, e^8 = 3, 15, 105.
    mean = 3 * x**2 + 3 * sigma**2
    second = 9 * x**4 * 3 + 6 * x**2 * sigma**2 * 15 + sigma**4 * 105
    error = np.sqrt((second - mean**2) / pairs)
    assert abs(slope_of(engine) - mean) < TIMES * error < 0.05 * mean


def test_estimate_is_zero_for_an_even_function():
    even = make(
        lambda params, batch, ctx: jnp.cosh(ctx.y.params).sum() + 1e6,
        np.zeros(3),
        pairs=16,
    )
    np.testing.assert_array_equal(slope_of(even), np.zeros(3))


# Truncated windows. With signs for perturbations and few bits in all numbers, every
# operation is exact: equal means equal.


def add_up():
    """Return a transformation that adds gradients up, and leaves x where it is."""
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    return optax.GradientTransformation(
        zeros, lambda g, state, _=None: (zeros(g), jax.tree.map(jnp.add, state, g))
    )


def chain(params, batch, ctx):
    """s <- A s + x c, whose window's loss is the sum of (s_1 - 1)^2 / 2 over steps."""
    size = len(params)
    matrix = 0.5 * (jnp.eye(size) + jnp.eye(size, k=1))
    signs = jnp.where(jnp.arange(size) < (size + 1) // 2 - 2, 1.0, -1.0)
    after = matrix @ params + ctx.x.params * signs
    so_far = jnp.where(ctx.inner_step == 0, 0.0, ctx.model_state)
    return {
        "loss": params @ jax.lax.stop_gradient(params - after),
        "model_state": so_far + 0.5 * (after[0] - 1) ** 2,
    }


def sum_over_episode(estimator, window, length, size, rng=0, **options):
    """Return the state after an episode at the same x, and the sum of estimates."""
    x = mlox.Problem.create(
        name="x",
        params=jnp.array(0.5),
        tx=add_up(),
        loss_fn=lambda params, batch, ctx: ctx.y.model_state,
    )
    y = mlox.Problem.create(
        name="y",
        params=jnp.zeros(size),
        tx=optax.sgd(1.0),
        loss_fn=chain,
        model_state=jnp.zeros(()),
        reset=lambda params, ctx: jnp.zeros_like(params),
        unroll_steps=window,
        rng=rng,
    )
    graph = mlox.evolve([x, y], *EDGES, lower="y", estimator=estimator, **options)
    engine = mlox.Engine(*graph)
    state, step = engine.init(), engine.compile(donate=False)
    for _ in range(length // window):
        state, _ = step(state, NO_DATA)
    return state, float(state["x"].opt_state)


EXACT = {"length": 4, "size": 5, "pairs": 4, "sigma": 0.25, "draw": SIGNS}


@functools.cache
def whole_window():
    return sum_over_episode(mlox.ES(), 4, **EXACT)


def test_nres_summed_over_an_episode_is_es_of_the_whole_window():
    estimator = mlox.NRES(windows=4, in_step=True)
    state, total = sum_over_episode(estimator, 1, **EXACT)
    whole, expected = whole_window()
    assert total == expected != 0.0
    np.testing.assert_array_equal(state["y"].params, whole["y"].params)


@pytest.mark.parametrize(
    "estimator", [mlox.PES(1), pytest.param(mlox.NRES(1), marks=pytest.mark.slow)]
)
def test_episodes_of_one_window_are_es(estimator):
    state, total = sum_over_episode(estimator, 4, **EXACT)
    whole, expected = whole_window()
    assert total == expected
    np.testing.assert_array_equal(state["y"].params, whole["y"].params)


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 2])
def test_nres_follows_es_of_the_whole_window_with_normal_perturbations(window):
    options = {"length": 40, "size": 23, "pairs": 100, "sigma": 0.1}
    estimator = mlox.NRES(windows=40 // window, in_step=True)
    state, total = sum_over_episode(estimator, window, **options)
    whole, expected = sum_over_episode(mlox.ES(), 40, **options)
    np.testing.assert_array_equal(state["y"].params, whole["y"].params)
    np.testing.assert_allclose(total, expected, rtol=1e-11)


# Influence balancing (Vicol et al. 2021): n = 23, of which 10 with a plus, T = 40. The
# gradient is 1960.5; that of truncated windows has a fraction of its size. A draw has a
# spread of 2100 to 2700, and 42 and 200 under truncation.

SIZE, LENGTH, TRUE = 23, 40, 1960.5228


def truncated(x, window):
    """Return the sum of the losses, with the derivative of truncated windows."""
    matrix = 0.5 * (np.eye(SIZE) + np.eye(SIZE, k=1))
    signs = np.where(np.arange(SIZE) < 10, 1.0, -1.0)
    s, total = jnp.zeros(SIZE), 0.0
    for t in range(LENGTH):
        s = matrix @ (s if t % window else jax.lax.stop_gradient(s)) + x * signs
        total += 0.5 * (s[0] - 1) ** 2
    return total


def estimate(estimator, window, draws, **options):
    options = {"length": LENGTH, "size": SIZE, "sigma": 0.1, **options}
    return sum_over_episode(estimator, window, pairs=draws, **options)[1]


def test_nres_is_not_short_sighted_in_influence_balancing():
    draws = 2_000
    found = estimate(mlox.NRES(windows=10, in_step=True), 4, draws)
    assert abs(found - TRUE) < TIMES * 2700 / np.sqrt(draws) < 250


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "window", "mean", "spread"),
    [
        (mlox.ES, 1, 150.834, 42),
        (mlox.ES, 4, 376.868, 200),
        (mlox.ES, LENGTH, TRUE, 2700),
        (mlox.PES, 1, TRUE, 2200),
        (mlox.PES, 4, TRUE, 2300),
        (mlox.NRES, 1, TRUE, 2700),
        (mlox.NRES, 4, TRUE, 2700),
    ],
)
@pytest.mark.parametrize("rng", [0, 1])
def test_influence_balancing_has_the_means_of_the_table(
    kind, window, mean, spread, rng
):
    draws = 20_000
    estimator = kind(windows=LENGTH // window, in_step=True)
    found = estimate(estimator, window, draws, rng=rng)
    assert abs(found - mean) < TIMES * spread / np.sqrt(draws)
    if kind is mlox.ES:
        np.testing.assert_allclose(jax.grad(truncated)(0.5, window), mean, rtol=1e-5)


# Episodes.


def test_staggered_episodes_begin_at_different_windows_with_a_new_optimizer():
    pairs, cycles = 3, 6
    engine = make(
        lambda params, batch, ctx: ctx.y.params**2,
        1.0,
        lower={"tx": optax.adam(0.1)},
        pairs=pairs,
        estimator=mlox.NRES(windows=3),
    )
    state, step = engine.init(), engine.compile(donate=False)
    steps, noise = [], []
    for _ in range(cycles):
        state, _ = step(state, NO_DATA)
        steps.append(state["y"].opt_state[0].count)
        noise.append(state["y"].model_state.noise.now)
    # Pair i begins again in the windows w with (w + i) % 3 = 0.
    expected = [[1, 1, 1], [2, 2, 1], [3, 1, 2], [1, 2, 3], [2, 3, 1], [3, 1, 2]]
    np.testing.assert_array_equal(steps, np.tile(expected, 2))
    renewed = np.diff(np.asarray(noise), axis=0) != 0
    np.testing.assert_array_equal(renewed, np.asarray(steps)[1:] == 1)


@pytest.mark.slow
def test_truncated_es_begins_the_windows_of_a_pair_at_one_place():
    engine = make(
        lambda params, batch, ctx: ctx.y.params,
        1.0,
        lower={"tx": optax.sgd(0.5), "reset": None},
        pairs=3,
    )
    state, step = engine.init(), engine.compile(donate=False)
    for _ in range(3):
        before = state["y"].params[:3]
        state, _ = step(state, NO_DATA)
        noise, now = state["y"].model_state.noise.now, state["y"].params
        # y <- y + (x + s - y) / 2, from the place of the positive copy.
        np.testing.assert_allclose(now[:3] - now[3:], noise[:3], rtol=1e-12)
        x = 2 * now[0] - before[0] - noise[0]
        np.testing.assert_allclose(now[:3], (before + x + noise[:3]) / 2, rtol=1e-12)


@pytest.mark.slow
def test_pes_has_the_sum_of_the_perturbations_since_the_episode_began():
    engine = make(
        lambda params, batch, ctx: ctx.y.params,
        1.0,
        pairs=2,
        estimator=mlox.PES(windows=2),
    )
    state, step = engine.init(), engine.compile(donate=False)
    sums = np.zeros(4)
    for window in range(5):
        state, _ = step(state, NO_DATA)
        noise = state["y"].model_state.noise
        begins = np.tile([window % 2 == 0, window == 0 or window % 2 == 1], 2)
        sums = np.where(begins, 0.0, sums) + noise.now
        np.testing.assert_allclose(noise.total, sums, rtol=1e-12)


# What copies share, and what is not differentiated.


def opaque(x):
    """Round down, in a way that JAX can neither see nor differentiate."""
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(np.floor, shape, x, vmap_method="legacy_vectorized")


def test_losses_are_not_differentiated_and_copies_share_batches_and_keys():
    """With F = y + noise and y = x + noise the estimate of a pair is s s / sigma^2."""

    def lower_loss(params, batch, ctx):
        aim = opaque(4 * ctx.x.params) / 4 + batch + jax.random.normal(ctx.rng)
        return 0.5 * (params - aim) ** 2

    def upper_loss(params, batch, ctx):
        found = 100 * jax.random.normal(ctx.rng) + ctx.y.params + ctx.y.model_state
        return opaque(found * 2**20) / 2**20

    engine = make(
        upper_loss,
        1.0,
        lower={
            "loss_fn": lambda *args: {"loss": lower_loss(*args), "model_state": 1.0},
            "model_state": jnp.zeros(()),
            "unroll_steps": 2,
        },
        upper={"rng": 1},
        pairs=3,
        draw=SIGNS,
    )
    batches = {"x": None, "y": jnp.array([5.0, 7.0])}  # no axis of tasks
    np.testing.assert_allclose(slope_of(engine, batches), 1.0, atol=1e-4)
    text = str(jax.make_jaxpr(lambda s: engine.step(s, batches))(engine.init()))
    assert "pure_callback" in text
    assert "transpose" not in text


@pytest.mark.slow
def test_batches_that_are_sampled_follow_the_perturbed_upper():
    def sample(params, ctx):
        return ctx.x.params + jax.random.normal(ctx.rng)

    engine = make(
        lambda params, batch, ctx: batch * ctx.y.params,
        2.0,
        lower={
            "loss_fn": lambda params, batch, ctx: 0.5 * (params - batch) ** 2,
            "sample": sample,
        },
        upper={"sample": lambda params, ctx: 3.0 * params + 0.0 * ctx.y.params},
        pairs=2,
        draw=SIGNS,
    )
    state, _ = engine.step(engine.init(), NO_DATA)
    y, noise = state["y"].params, state["y"].model_state.noise.now
    gaps = y - noise - 2.0  # the same draw in all of them
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-12)
    # F = 3 x (x + draw)
    np.testing.assert_allclose(slope_of(engine), 3 * (4.0 + gaps[0]), rtol=1e-12)


@pytest.mark.slow
def test_hyperparams_are_those_of_the_perturbed_upper():
    """One step of the rate x from 1 on y^2 / 2: y = 1 - x."""
    engine = make(
        lambda params, batch, ctx: ctx.y.params,
        0.25,
        lower={
            "params": jnp.ones(()),
            "reset": lambda params, ctx: jnp.ones(()),
            "tx": optax.inject_hyperparams(optax.sgd)(0.1),
            "loss_fn": lambda params, batch, ctx: 0.5 * params**2,
            "hyperparams": lambda ctx: {"learning_rate": ctx.x.params},
        },
        pairs=2,
        draw=SIGNS,
    )
    np.testing.assert_allclose(slope_of(engine), -1.0, rtol=1e-12)


@pytest.mark.slow
def test_frozen_parameters_of_the_upper_are_not_perturbed():
    x = mlox.Problem.create(
        name="x",
        params={"free": jnp.ones(2), "frozen": jnp.ones(3)},
        tx=optax.sgd(0.1),
        trainable=lambda params: {"free": True, "frozen": False},
        loss_fn=lambda params, batch, ctx: {
            "loss": ctx.y.params**2 + params["frozen"].sum(),
            "frozen": params["frozen"].sum(),
        },
    )
    y = mlox.Problem.create(
        name="y",
        params=jnp.zeros(()),
        tx=optax.sgd(1.0),
        loss_fn=lambda params, batch, ctx: (
            0.5 * (params - ctx.x.params["free"].sum() * ctx.x.params["frozen"][0]) ** 2
        ),
        rng=0,
    )
    graph = mlox.evolve([x, y], *EDGES, lower="y", pairs=4, sigma=0.1)
    engine = mlox.Engine(*graph)
    state, metrics = engine.step(engine.init(), NO_DATA)
    assert state["y"].model_state.noise.now["frozen"] is None
    assert metrics["x/frozen"][0] == 3.0
    np.testing.assert_array_equal(state["x"].params["frozen"], np.ones(3))
    assert (state["x"].params["free"] != 1.0).all()


# It is a graph: chunks, devices, checkpoints.


@functools.cache
def make_wide(**options):
    return make(
        lambda params, batch, ctx: (ctx.y.params**3).sum(),
        np.array([1.0, -0.5]),
        lower={"tx": optax.adam(0.1), "unroll_steps": 3},
        pairs=8,
        estimator=mlox.PES(windows=3),
        **options,
    )


def run(engine, state, cycles):
    step = engine.compile(donate=False)
    for _ in range(cycles):
        state, _ = step(state, NO_DATA)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [mlox.ES(windows=3), mlox.PES(windows=3)])
def test_chunks_of_pairs_change_nothing(estimator):
    make_one = functools.partial(
        make,
        lambda params, batch, ctx: ctx.y.params**3,
        1.0,
        lower={"tx": optax.sgd(0.3)},
        pairs=4,
        estimator=estimator,
    )
    whole, parts = make_one(), make_one(pairs_at_once=2)
    assert parts.problems[1].tasks_at_once == 4
    found, expected = (run(engine, engine.init(), 4) for engine in (parts, whole))
    chex.assert_trees_all_close(
        [found[n].params for n in "xy"],
        [expected[n].params for n in "xy"],
        rtol=1e-12,
    )


@pytest.mark.slow
def test_perturbations_are_restored(tmp_path):
    engine = make_wide()
    expected = run(engine, engine.init(), 5)
    before = run(engine, engine.init(), 2)
    mlox.save(tmp_path, before, cycle=2)
    restored = mlox.restore(tmp_path, engine.init())
    found = run(engine, restored, 3)
    chex.assert_trees_all_equal(
        [found[n].params for n in "xy"], [expected[n].params for n in "xy"]
    )


@pytest.mark.slow
def test_upper_learns_where_the_loss_is_a_staircase():
    engine = make(
        lambda params, batch, ctx: jnp.floor(4 * (ctx.y.params - 2.0) ** 2).sum(),
        np.zeros(3),
        pairs=8,
        sigma=0.3,
    )
    state, _ = engine.run(engine.init(), train_iters=200, progress=False, loggers=())
    np.testing.assert_allclose(state["x"].params, 2.0, atol=0.3)
