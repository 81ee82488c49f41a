"""The fixed point of the optimizer's own step: formula, truth, and its two ends."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
import mlox.testing

RANDOM = np.random.default_rng(0)
B = jnp.asarray(RANDOM.normal(size=(4, 3)))
START = jnp.asarray(RANDOM.normal(size=4))
X = jnp.asarray(RANDOM.normal(size=3))
Q = RANDOM.normal(size=(4, 4))
A = jnp.asarray(np.eye(4) + 0.1 * Q @ Q.T)
NO_DATA = {"x": None, "y": None}
STANDARD = jax.numpy_dtype_promotion("standard")  # optax adds numbers of two dtypes


@pytest.fixture(autouse=True)
def promote_as_optax_does():
    with STANDARD:
        yield


def lower_cost(y, x):
    return 0.5 * y @ A @ y - y @ jnp.tanh(B @ x) + 0.05 * jnp.sum(y**4)


def upper_cost(y, x):
    return jnp.sum((y - 1.0) ** 3) + 0.1 * x @ x


def make_engine(method, tx, y=START, x=X, cost=lower_cost, **parts):
    """Return an engine whose lower stands at the given point and stays there."""
    upper = mlox.Problem.create(
        name="x",
        params=x,
        tx=optax.sgd(1.0),
        loss_fn=lambda x, batch, ctx: upper_cost(flat(ctx.y.params), x),
    )
    lower = mlox.Problem.create(
        name="y",
        params=y,
        tx=tx,
        method=method,
        loss_fn=lambda y, batch, ctx: cost(flat(y), ctx.x.params),
        **parts,
    )
    return mlox.Engine([upper, lower], {"x": ["y"]}, {"y": ["x"]})


def flat(y):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(y)])


def hypergradient(engine):
    return jax.jit(lambda s: engine.hypergradient(s, NO_DATA, "x")[1])(engine.init())


def hold(tx, steps=3, momentum=True):
    """Return an optimizer whose state stands still, as some steps have left it."""
    with STANDARD:
        state = tx.init(START)
        for i in range(steps):
            state = tx.update(jnp.sin(3.0 * START + i) + 0.3, state, START)[1]
    if not momentum:
        state = optax.tree.set(state, mu=jnp.zeros_like(START))

    def update(updates, state, params=None):
        return tx.update(updates, state, params)[0], state

    return optax.GradientTransformation(lambda _: state, update)


def map_of(tx, x=X, cost=lower_cost, project=lambda y: y):
    """Return T(y, x) with the state of a held optimizer."""
    state = tx.init(START)

    def step(y, x):
        gradient = jax.grad(cost)(y, x)
        return project(y + tx.update(gradient, state, y)[0])

    return step


def rest(step, x, y=START, steps=3000):
    """Return the fixed point y = T(y, x)."""
    return jax.lax.fori_loop(0, steps, lambda _, y: step(y, x), y)


def differentiate_numerically(step, y, x=X, h=1e-5):
    """Return central differences of the upper's cost, the lower at rest."""
    value = jax.jit(lambda x: upper_cost(rest(step, x, y), x))
    shifts = h * np.eye(len(x))
    return np.stack([(value(x + e) - value(x - e)) / (2 * h) for e in shifts])


def by_formula(tx, y, iterations):
    """Return the hypergradient with dense matrices, after so many iterations."""
    step = map_of(tx)
    jacobian = np.asarray(jax.jacobian(step)(y, X))
    across = np.asarray(jax.jacobian(step, argnums=1)(y, X))  # du/dg dg/dx
    v = np.asarray(jax.grad(upper_cost)(y, X))
    w = v
    for _ in range(iterations):
        w = v + jacobian.T @ w
    return np.asarray(jax.grad(upper_cost, 1)(y, X)) + across.T @ w


def assert_near(found, expected, tolerance):
    distance = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert distance < tolerance, f"relative distance {distance:.2e}"


DECAYED = optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.3, momentum=0.5))
ADAMW = hold(optax.adamw(0.1, weight_decay=0.3))
CLIPPED = hold(
    optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adam(optax.exponential_decay(0.1, 2, 0.9)),
        optax.add_decayed_weights(-0.01),
    )
)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("tx", "iterations"),
    [
        (ADAMW, 0),
        pytest.param(ADAMW, 3, marks=SLOW),
        pytest.param(CLIPPED, 0, marks=SLOW),
        pytest.param(CLIPPED, 3, marks=SLOW),
    ],
    ids=["adamw, 0", "adamw, 3", "clipped, 0", "clipped, 3"],
)
def test_hypergradient_equals_its_formula(tx, iterations):
    engine = make_engine(mlox.FixedPoint(iterations), tx)
    y = jax.jit(engine.step)(engine.init(), NO_DATA)[0]["y"].params
    assert_near(hypergradient(engine), by_formula(tx, y, iterations), 1e-10)


@pytest.mark.parametrize(
    "tx",
    [pytest.param(DECAYED, id="momentum", marks=SLOW), pytest.param(ADAMW, id="adamw")],
)
def test_hypergradient_is_that_of_a_lower_at_rest(tx):
    """With weight decay, of which the gradient does not know: it is not zero there."""
    step = map_of(tx if tx is ADAMW else hold(DECAYED, steps=0))
    y = rest(step, X)
    assert jnp.linalg.norm(step(y, X) - y) < 1e-12
    assert jnp.linalg.norm(jax.grad(lower_cost)(y, X)) > 0.1
    expected = differentiate_numerically(step, y)
    found = hypergradient(make_engine(mlox.FixedPoint(2000), tx, y))
    assert_near(found, expected, 1e-8)
    implicit = hypergradient(make_engine(mlox.Implicit(mlox.Dense()), tx, y))
    assert np.linalg.norm(implicit - expected) > 0.05 * np.linalg.norm(expected)


@SLOW
@pytest.mark.parametrize(
    "tx",
    [
        hold(optax.adam(0.1), momentum=False),
        hold(optax.rmsprop(0.05)),
        hold(optax.adagrad(0.3)),
    ],
    ids=["adam", "rmsprop", "adagrad"],
)
def test_any_preconditioner_tends_to_the_implicit_answer(tx):
    y = rest(map_of(hold(optax.sgd(0.2))), X)
    exact = hypergradient(make_engine(mlox.Implicit(mlox.Dense()), tx, y))
    found = hypergradient(make_engine(mlox.FixedPoint(1000), tx, y))
    assert_near(found, exact, 1e-9)


@SLOW
def test_projection_belongs_to_the_step():
    """On a box, some entries at its faces."""
    tx, box = hold(optax.sgd(0.2)), lambda y: jnp.clip(y, -0.4, 0.3)
    step = map_of(tx, project=box)
    y = rest(step, X)
    assert 0 < jnp.sum((y > -0.4) & (y < 0.3)) < 4
    found = hypergradient(make_engine(mlox.FixedPoint(300), tx, y, project=box))
    assert_near(found, differentiate_numerically(step, y), 1e-8)


# Its two ends, to the last bit


def in_leaves(y):
    return {"a": y[:1], "b": {"c": y[1:].reshape(3, 1)}}


def neumann(iterations, rate):
    return optax.sgd(rate), iterations, mlox.Implicit(mlox.Neumann(iterations, rate))


@pytest.mark.parametrize(
    ("tx", "iterations", "other", "dtype"),
    [
        (optax.adamw(0.1), 0, mlox.SAMA(), jnp.float32),
        (*neumann(7, 1 / 3), jnp.float32),
        pytest.param(optax.adamw(0.1), 0, mlox.SAMA(), jnp.float64, marks=SLOW),
        pytest.param(optax.sgd(0.1), 0, mlox.SAMA(), jnp.float32, marks=SLOW),
        pytest.param(*neumann(1, 0.1), jnp.float32, marks=SLOW),
        pytest.param(*neumann(7, 1 / 3), jnp.float64, marks=SLOW),
    ],
    ids=[
        "sama",
        "neumann",
        "sama, float64",
        "sama, sgd",
        "neumann, 1",
        "neumann, float64",
    ],
)
def test_its_ends_are_sama_and_neumann_bit_for_bit(tx, iterations, other, dtype):
    parts = {"y": in_leaves(START.astype(dtype)), "x": X.astype(dtype)}

    def cost(y, x):
        return lower_cost(y, x) * jnp.exp(0.1 * x[0]) + jnp.sum(jnp.sin(y * x[1]))

    found = [
        hypergradient(make_engine(method, tx, cost=cost, **parts))
        for method in (mlox.FixedPoint(iterations), other)
    ]
    assert found[0].dtype == dtype
    chex.assert_trees_all_equal(*found)


@SLOW
@pytest.mark.parametrize("rate", [0.1, 0.03, 1 / 3, 0.01937])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 17, 1), (20, 64, 33, 1)], ids=str)
@pytest.mark.parametrize("tasks", [None, 3])
def test_a_network_has_the_bits_of_neumann(sizes, rate, tasks):
    rows = jax.random.normal(jax.random.key(1), (13, sizes[0]))
    goal = jnp.sin(rows[:, 0])
    keys = jax.random.split(jax.random.key(2), len(sizes))
    params = [
        {"w": jax.random.normal(k, (a, b)) / a**0.5, "b": jnp.zeros(b)}
        for k, a, b in zip(keys, sizes, sizes[1:], strict=False)
    ]

    def squares(params):
        x = rows
        for layer in params:
            x = jnp.tanh(x @ layer["w"] + layer["b"][None])
        return (x[:, 0] - goal) ** 2

    def upper_loss(x, batch, ctx):
        one = lambda y: jnp.mean(squares(y)[::2])
        y = ctx.y.params
        return one(y) if tasks is None else jnp.mean(jax.vmap(one)(y))

    def lower_loss(y, batch, ctx):
        weights = jax.nn.sigmoid(ctx.x.params)
        return weights @ squares(y) + 1e-2 * optax.tree.norm(y, squared=True)

    def step(method):
        x = mlox.Problem.create(
            name="x", params=jnp.zeros(13), tx=optax.sgd(1.0), loss_fn=upper_loss
        )
        y = mlox.Problem.create(
            name="y",
            params=params,
            tx=optax.sgd(rate),
            loss_fn=lower_loss,
            method=method,
            tasks=tasks,
        )
        engine = mlox.Engine([x, y], {"x": ["y"]}, {"y": ["x"]})
        return jax.jit(engine.step)(engine.init(), NO_DATA)[0]["x"].params

    series = mlox.Implicit(mlox.Neumann(3, rate))
    chex.assert_trees_all_equal(step(mlox.FixedPoint(3)), step(series))


# What it reports


@pytest.mark.parametrize(
    ("rate", "least", "most"),
    [pytest.param(0.3, 0.0, 1e-3, marks=SLOW), (3.0, 10.0, np.inf)],
)
def test_residual_says_whether_the_iteration_converges(rate, least, most):
    tx = hold(optax.sgd(rate))
    engine = make_engine(mlox.FixedPoint(20), tx, jnp.zeros(4))
    metrics = jax.jit(engine.step)(engine.init(), NO_DATA)[1]
    assert least < metrics["x/y/residual"][0] < most
    assert metrics["x/y/iterations"][0] == 20


@SLOW
@pytest.mark.parametrize("iterations", [0, 2, 30])
def test_keeps_the_laws_of_methods(iterations):
    def expected(H, v):
        powers = [
            jnp.linalg.matrix_power(jnp.eye(len(v)) - 0.1 * H, i)
            for i in range(iterations + 1)
        ]
        return 0.1 * sum(powers) @ v

    mlox.testing.check_method(mlox.FixedPoint(iterations), expected=expected)


def test_an_answer_without_a_step_is_refused():
    answer = mlox.Answer(
        jnp.zeros(2), lambda y: y, mlox.System.DEFINITE, pull_update=lambda v: -v
    )
    with pytest.raises(ValueError, match="has no step of one optimizer"):
        mlox.FixedPoint().multiplier(answer, jnp.ones(2))
