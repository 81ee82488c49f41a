"""Laws that every method, solver and graph must keep, in float64."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nested import GRAPHS, Program

import mlox

DENSE = mlox.Implicit(mlox.Dense())
DEFINITE = {
    "Dense": DENSE,
    "CG": mlox.Implicit(mlox.CG(iterations=30)),
    "GMRES": mlox.Implicit(mlox.GMRES()),
    "BiCGStab": mlox.Implicit(mlox.BiCGStab()),
    "auto": mlox.Implicit(),
}


def error(found, expected):
    """Return the largest error relative to the largest entry."""
    return np.abs(found - expected).max() / np.abs(expected).max()


def without_data(engine):
    return dict.fromkeys(engine.names)


def gradient(engine, state, name):
    return jax.jit(lambda s: engine.hypergradient(s, without_data(engine), name)[1])(
        state
    )


def at(engine, theta):
    """Return the initial state with the parameters of a solved program."""
    return {
        n: problem.replace(params=jnp.asarray(theta[n][0]))
        for n, problem in engine.init().items()
    }


@functools.cache
def reference(graph):
    """Solve a program; return it with its solution and its total gradient."""
    program = Program(GRAPHS[graph])
    top = program.graph.names[0]
    return (
        program,
        program.stationary(top),
        program.differences(top, program.theta()),
    )


@pytest.mark.parametrize("solver", DEFINITE)
@pytest.mark.parametrize(
    "graph", ["bilevel", "two lowers", "two uppers", "uncoupled reader"]
)
def test_definite_graphs_agree_with_the_solved_program(graph, solver):
    program, theta, expected = reference(graph)
    engine = program.engine(DEFINITE[solver])
    found = gradient(engine, at(engine, theta), program.graph.names[0])
    assert error(found, expected) < 1e-6


@pytest.mark.parametrize("solver", ["Dense", "GMRES"])
@pytest.mark.parametrize(
    "graph",
    [
        "three levels",
        "skip edge",
        "lower of two levels",
        "siblings",
        "diamond",
        "four levels",
    ],
)
def test_towers_agree_with_the_solved_program(graph, solver):
    program, theta, expected = reference(graph)
    engine = program.engine(DEFINITE[solver])
    found = gradient(engine, at(engine, theta), program.graph.names[0])
    assert error(found, expected) < 1e-6


def test_implicit_without_a_solver_serves_in_a_tower():
    program, theta, expected = reference("skip edge")
    engine = program.engine(mlox.Implicit())
    assert error(gradient(engine, at(engine, theta), "t"), expected) < 1e-6


def slopes(program, theta, name, of):
    """Return d cost(name) / d of, and the Hessian d2 cost(name) / d of2, densely."""
    values = {n: jnp.asarray(x[0]) for n, x in theta.items()}

    def cost(x):
        return program.cost(name, {**values, of: x}, jnp.multiply)

    return jax.grad(cost)(values[of]), jax.hessian(cost)(values[of])


def cross(program, theta, name, rows, columns):
    """Return d2 cost(name) / d rows d columns, densely."""
    values = {n: jnp.asarray(x[0]) for n, x in theta.items()}

    def cost(x, y):
        return program.cost(name, {**values, rows: x, columns: y}, jnp.multiply)

    return jax.jacfwd(jax.grad(cost, 0), 1)(values[rows], values[columns])


@pytest.mark.parametrize("graph", ["three levels", "skip edge", "diamond"])
def test_direct_coupling_is_the_sum_over_paths(graph):
    """Betty's rule: each member of a path maps by its own Hessian, its lowers fixed."""
    program, theta, total = reference(graph)
    top = program.graph.names[0]
    engine = program.engine(DENSE, coupling="direct")
    expected = slopes(program, theta, top, top)[0]
    for path in engine.paths[top]:
        vector = slopes(program, theta, top, path[1])[0]
        for member, following in itertools.pairwise(path[1:]):
            hessian = slopes(program, theta, member, member)[1]
            mixed = cross(program, theta, member, member, following)
            vector = -mixed.T @ jnp.linalg.solve(hessian, vector)
        expected += vector
    found = gradient(engine, at(engine, theta), top)
    assert error(found, expected) < 1e-10
    assert error(found, total) > 1e-3


# Closed forms.

MATRIX = jnp.array([[2.0, 0.3, 0.1], [0.3, 1.5, -0.2], [0.1, -0.2, 1.2]])
TARGET = jnp.array([1.0, 2.0, -1.0])
START = jnp.array([0.1, -0.3, 0.2])


def ridge_loss(params, batch, ctx):
    penalty = jnp.exp(ctx.penalty.params)
    return 0.5 * params @ MATRIX @ params - TARGET @ params + 0.5 * penalty @ params**2


def upper_loss(params, batch, ctx):
    return 0.5 * ((ctx.fit.params - 1.0) ** 2).sum() + 0.1 * (params**2).sum()


def closed_form(penalty):
    fit = jnp.linalg.solve(MATRIX + jnp.diag(jnp.exp(penalty)), TARGET)
    return 0.5 * ((fit - 1.0) ** 2).sum() + 0.1 * (penalty**2).sum()


def ridge(method, steps=1, tx=None, loss=ridge_loss, start=None):
    fit = jnp.linalg.solve(MATRIX + jnp.diag(jnp.exp(START)), TARGET)
    return mlox.Engine(
        [
            mlox.Problem.create(
                name="penalty", params=START, tx=optax.sgd(0.1), loss_fn=upper_loss
            ),
            mlox.Problem.create(
                name="fit",
                params=fit if start is None else start,
                tx=tx or optax.sgd(0.2),
                loss_fn=loss,
                method=method,
                unroll_steps=steps,
            ),
        ],
        u2l={"penalty": ["fit"]},
        l2u={"fit": ["penalty"]},
    )


@pytest.mark.parametrize("solver", DEFINITE)
def test_ridge_regression_has_a_closed_form(solver):
    engine = ridge(DEFINITE[solver])
    found = gradient(engine, engine.init(), "penalty")
    assert error(found, jax.grad(closed_form)(START)) < 1e-8


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        (mlox.Unrolled(), 120),
        (mlox.Unrolled(last_steps=90), 120),
        (mlox.Implicit(mlox.Neumann(iterations=200, step=0.2)), 1),
    ],
)
def test_series_converge_to_the_closed_form(method, steps):
    engine = ridge(method, steps, start=jnp.zeros(3) if steps > 1 else None)
    found = gradient(engine, engine.init(), "penalty")
    assert error(found, jax.grad(closed_form)(START)) < 1e-6


def mixed_term(multiplier, fit):
    """Return d/d penalty of <multiplier, d ridge / d fit>."""
    return jnp.exp(START) * fit * multiplier


@pytest.mark.parametrize("method", ["identity", "sama", "sama difference"])
def test_truncated_methods_have_their_own_formulas(method):
    methods = {
        "identity": (mlox.Implicit(mlox.Identity()), 1.0),
        "sama": (mlox.SAMA(), 0.2),
        "sama difference": (mlox.SAMA(epsilon=0.1), 0.2),
    }
    value, scale = methods[method]
    engine = ridge(value)
    fit = engine.init()["fit"].params
    expected = 0.2 * START - mixed_term(scale * (fit - 1.0), fit)
    assert error(gradient(engine, engine.init(), "penalty"), expected) < 1e-8


@pytest.mark.parametrize(
    "tx",
    [
        optax.adam(0.01),
        optax.adamw(0.01, weight_decay=0.1),
        optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.3, momentum=0.9)),
    ],
    ids=["adam", "adamw", "clipped momentum"],
)
def test_sama_uses_the_jacobian_of_the_real_optimizer(tx):
    """The multiplier is -(du/dg)^T v, here by central differences of the update."""
    engine = ridge(mlox.SAMA(), steps=3, tx=tx, start=jnp.array([0.3, 0.5, -0.7]))
    state = engine.init()
    after, _ = jax.jit(engine.step)(state, without_data(engine))
    fit = after["fit"]
    slope = jax.grad(
        lambda p: 0.5 * p @ MATRIX @ p - TARGET @ p + 0.5 * jnp.exp(START) @ p**2
    )(fit.params)

    def update(g):
        return tx.update(g, fit.opt_state, fit.params)[0]

    eye = 1e-6 * jnp.eye(3)
    jacobian = jnp.stack(
        [(update(slope + e) - update(slope - e)) / 2e-6 for e in eye], axis=1
    )
    multiplier = -jacobian.T @ (fit.params - 1.0)
    expected = 0.2 * START - mixed_term(multiplier, fit.params)
    assert error(gradient(engine, state, "penalty"), expected) < 1e-6


def test_darts_has_its_formula():
    epsilon = 0.05

    def loss(params, batch, ctx):
        return ridge_loss(params, batch, ctx) + ctx.penalty.params @ params**4

    engine = ridge(mlox.FiniteDifference(epsilon), tx=optax.sgd(0.0), loss=loss)
    fit = engine.init()["fit"].params
    v = fit - 1.0
    step = epsilon / jnp.linalg.norm(v)

    def slope(p):  # d loss / d penalty at fixed fit
        return 0.5 * jnp.exp(START) * p**2 + p**4

    expected = 0.2 * START - (slope(fit + step * v) - slope(fit - step * v)) / (
        2 * step
    )
    assert error(gradient(engine, engine.init(), "penalty"), expected) < 1e-10


# Unrolling and mixing.


@pytest.mark.parametrize("steps", [1, 2, 7, 12])
def test_checkpoints_change_nothing(steps):
    start = jnp.zeros(3)
    plain, *others = (
        gradient(engine, engine.init(), "penalty")
        for engine in (
            ridge(
                mlox.Unrolled(checkpoint=kind), steps, optax.sgd(0.1, 0.9), start=start
            )
            for kind in ("none", "step", "segments")
        )
    )
    for other in others:
        assert error(other, plain) < 1e-12


@pytest.mark.parametrize("last_steps", [1, 3, 7, 20])
def test_truncation_differentiates_the_last_steps(last_steps):
    steps, rate = 7, 0.1
    engine = ridge(
        mlox.Unrolled(last_steps=last_steps), steps, optax.sgd(rate), start=jnp.zeros(3)
    )

    def program(penalty):
        fit = jnp.zeros(3)
        for i in range(steps):
            held = jax.lax.stop_gradient(penalty) if i < steps - last_steps else penalty
            fit = fit - rate * (MATRIX @ fit - TARGET + jnp.exp(held) * fit)
        return 0.5 * ((fit - 1.0) ** 2).sum() + 0.1 * (penalty**2).sum()

    found = gradient(engine, engine.init(), "penalty")
    assert error(found, jax.grad(program)(START)) < 1e-12


COUPLING = jnp.array([[0.5, 0.2], [-0.3, 0.4]])


def leaf_loss(params, batch, ctx):  # a unit Hessian: one step of SGD(1) solves it
    return 0.5 * params @ params - jnp.sin(ctx.p.params) @ COUPLING @ params


def middle_loss(params, batch, ctx):
    c, t = ctx.c.params, ctx.t.params
    own = 0.5 * params @ params + 0.1 * (params**4).sum() + params @ COUPLING @ c
    return own + 0.3 * (c**3).sum() + (t * params).sum() + 0.2 * (params**2 @ t)


def top_loss(params, batch, ctx):
    return ((ctx.p.params - 0.3) ** 2).sum() + 0.1 * (params**2).sum()


def tower(p_method, p_tx, c_method, c_tx, p_steps=1, c_steps=1, p_start=None):
    start = jnp.array([0.3, -0.5])
    make = functools.partial(mlox.Problem.create, params=start)
    middle = {} if p_start is None else {"params": p_start}
    return mlox.Engine(
        [
            make(name="t", tx=optax.sgd(0.1), loss_fn=top_loss),
            make(
                name="p",
                tx=p_tx,
                loss_fn=middle_loss,
                method=p_method,
                unroll_steps=p_steps,
                **middle,
            ),
            make(
                name="c",
                tx=c_tx,
                loss_fn=leaf_loss,
                method=c_method,
                unroll_steps=c_steps,
            ),
        ],
        u2l={"t": ["p"], "p": ["c"]},
        l2u={"c": ["p"], "p": ["t"]},
    )


@pytest.mark.parametrize("c_method", [DENSE, mlox.Unrolled()], ids=["implicit", "unr."])
@pytest.mark.parametrize("steps", [1, 3])
def test_an_answer_under_an_unrolled_one(steps, c_method):
    """Against central differences of the very program."""
    engine = tower(
        mlox.Unrolled(), optax.sgd(0.1), c_method, optax.sgd(1.0), p_steps=steps
    )
    state = engine.init()
    step = jax.jit(lambda s: engine.step(s, without_data(engine))[0]["p"].params)

    def program(t):
        p = step({**state, "t": state["t"].replace(params=t)})
        return ((p - 0.3) ** 2).sum() + 0.1 * (t**2).sum()

    t, eye = state["t"].params, 1e-5 * jnp.eye(2)
    expected = np.array([(program(t + e) - program(t - e)) / 2e-5 for e in eye])
    assert error(gradient(engine, state, "t"), expected) < 1e-6


def test_an_unrolled_answer_under_an_implicit_one():
    """Against central differences of p solved with the run of c inside."""
    steps, rate = 4, 0.3
    start = jnp.array([0.3, -0.5])

    def run(p):
        c = start
        for _ in range(steps):
            c = c - rate * (c - COUPLING.T @ jnp.sin(p))
        return c

    def middle(p, t):
        ctx = mlox.Context(
            "p",
            {
                "c": mlox.Neighbour(run(p), None, None),
                "t": mlox.Neighbour(t, None, None),
            },
            None,
            0,
            None,
        )
        return middle_loss(p, None, ctx)

    @jax.jit
    def solve(t):
        def newton(p, _):
            slope, hessian = jax.grad(middle)(p, t), jax.hessian(middle)(p, t)
            return p - jnp.linalg.solve(hessian, slope), None

        return jax.lax.scan(newton, jnp.zeros(2), None, length=20)[0]

    def program(t):
        return ((solve(t) - 0.3) ** 2).sum() + 0.1 * (t**2).sum()

    t, eye = start, 1e-5 * jnp.eye(2)
    expected = np.array([(program(t + e) - program(t - e)) / 2e-5 for e in eye])
    engine = tower(
        DENSE,
        optax.sgd(0.0),
        mlox.Unrolled(),
        optax.sgd(rate),
        c_steps=steps,
        p_start=solve(t),
    )
    assert error(gradient(engine, engine.init(), "t"), expected) < 1e-6


# Derivatives of hypergradients.


@pytest.mark.parametrize("solver", DEFINITE)
@pytest.mark.parametrize("jacobian", [jax.jacrev, jax.jacfwd])
def test_a_hypergradient_can_be_differentiated(solver, jacobian):
    engine = ridge(DEFINITE[solver])
    state = engine.init()

    def hypergradient(penalty):
        there = {**state, "penalty": state["penalty"].replace(params=penalty)}
        return engine.hypergradient(there, without_data(engine), "penalty")[1]

    found = jax.jit(jacobian(hypergradient))(START)
    assert error(found, jax.hessian(closed_form)(START)) < 1e-8


def test_an_unrolled_hypergradient_can_be_differentiated():
    engine = ridge(mlox.Unrolled(), 5, start=jnp.zeros(3))
    state = engine.init()

    @jax.jit
    def hypergradient(penalty):
        there = {**state, "penalty": state["penalty"].replace(params=penalty)}
        return engine.hypergradient(there, without_data(engine), "penalty")[1]

    eye = 1e-5 * jnp.eye(3)
    expected = np.stack(
        [(hypergradient(START + e) - hypergradient(START - e)) / 2e-5 for e in eye], -1
    )
    assert error(jax.jacrev(hypergradient)(START), expected) < 1e-7


def test_the_implicit_rule_is_public():
    def cube_root(x):
        found = jnp.cbrt(jax.lax.stop_gradient(x))
        return mlox.attach(lambda y, x: y**3 - x, found, x)

    derivative = cube_root
    for expected in (1 / 12, -1 / 144, 5 / 3456):
        derivative = jax.grad(derivative)
        assert abs(derivative(8.0) - expected) < 1e-12


# Transformations, trees and dtypes.

METHODS = {
    "Unrolled": mlox.Unrolled(),
    "CG": mlox.Implicit(mlox.CG(iterations=3)),
    "Neumann": mlox.Implicit(mlox.Neumann(iterations=3, step=0.1)),
    "GMRES": mlox.Implicit(mlox.GMRES(iterations=3)),
    "Identity": mlox.Implicit(mlox.Identity()),
    "FiniteDifference": mlox.FiniteDifference(),
    "SAMA": mlox.SAMA(),
}


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.tanh(nn.Dense(3)(x)))[..., 0]


def network(method, dtype=jnp.float32):
    """Fit a Flax network with one penalty, a scalar parameter, for all weights."""
    model = Network()
    x = jnp.linspace(-1, 1, 8, dtype=dtype)[:, None]
    variables = jax.tree.map(
        lambda p: p.astype(dtype), model.init(jax.random.key(0), x)
    )

    def fit(params, batch, ctx):
        error = model.apply(params, x) - jnp.sin(3 * x[:, 0])
        decay = optax.tree.norm(params, squared=True)
        return (error**2).mean() + jnp.exp(ctx.penalty.params["log"]) * decay

    def valid(params, batch, ctx):
        return {"loss": (ctx.fit(0.9 * x) ** 2).mean(), "log": params["log"]}

    return mlox.Engine(
        [
            mlox.Problem.create(
                name="penalty",
                params={"log": jnp.asarray(-3.0, dtype)},
                tx=optax.adam(0.1),
                loss_fn=valid,
            ),
            mlox.Problem.create(
                name="fit",
                params=variables,
                tx=optax.sgd(0.1, 0.9),
                loss_fn=fit,
                apply_fn=model.apply,
                method=method,
                unroll_steps=2,
            ),
        ],
        u2l={"penalty": ["fit"]},
        l2u={"fit": ["penalty"]},
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_keeps_structure_and_dtypes(method, dtype):
    engine = network(METHODS[method], dtype)
    state = engine.init()
    after, metrics = jax.eval_shape(engine.step, state, without_data(engine))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for x, y in zip(*map(jax.tree.leaves, (state, after)), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
    assert metrics["fit/loss"].shape == (2,)
    assert metrics["penalty/log"].shape == (1,)


def test_the_method_never_changes_the_leaves():
    states = [
        jax.jit(engine.step)(engine.init(), without_data(engine))[0]["fit"].params
        for engine in map(network, METHODS.values())
    ]
    for other in states[1:]:
        for x, y in zip(*map(jax.tree.leaves, (states[0], other)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


def test_jit_scan_vmap_and_donation_agree():
    engine = ridge(mlox.Implicit(mlox.CG(iterations=3)), 2, start=jnp.zeros(3))
    state, batches = engine.init(), without_data(engine)
    step = jax.jit(engine.step)
    expected = state
    for _ in range(3):
        expected, _ = step(expected, batches)
    found, metrics = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: engine.step(s, batches), s, length=3)
    )(state)
    assert metrics["fit/loss"].shape == (3, 2)
    many = jax.tree.map(lambda x: jnp.stack([x, x + 0]), state)
    stacked = jax.jit(jax.vmap(lambda s: engine.step(s, batches)[0]))
    for _ in range(3):
        many = stacked(many)
    donated, compiled = engine.init(), engine.compile(donate=True)
    for _ in range(3):
        donated, _ = compiled(donated, batches)
    for name in engine.names:
        value = expected[name].params
        np.testing.assert_allclose(found[name].params, value, rtol=1e-12)
        np.testing.assert_allclose(many[name].params[1], value, rtol=1e-12)
        np.testing.assert_allclose(donated[name].params, value, rtol=1e-12)


def test_equal_configurations_do_not_retrace():
    traces = []
    tx = optax.sgd(0.1)

    def loss(params, batch, ctx):
        traces.append(1)
        return ridge_loss(params, batch, ctx)

    def make():
        method = mlox.Implicit(mlox.CG(iterations=2))
        return ridge(method, 2, tx, loss, start=jnp.zeros(3))

    # The upper's transformation is made anew by each call: share the first one's.
    first = make()
    state = first.init()
    first.compile(donate=False)(state, without_data(first))
    count = len(traces)
    make().compile(donate=False)(state, without_data(first))
    assert len(traces) == count > 0


@pytest.mark.parametrize("method", ["Unrolled", "CG"])
def test_the_trace_does_not_grow_with_the_steps(method):
    sizes = []
    for steps in (25, 400):
        engine = ridge(METHODS[method], steps, start=jnp.zeros(3))
        traced = jax.make_jaxpr(engine.step)(engine.init(), without_data(engine))
        sizes.append(str(traced).count("\n"))
    assert sizes[0] == sizes[1]


# A method and a solver of the user's own: plain values.


def richardson(matvec, b, guess=None):
    x = b if guess is None else guess
    for _ in range(150):
        x = jax.tree.map(lambda x, r, y: x + 0.3 * (r - y), x, b, matvec(x))
    return x, {}


class Half:
    """A method of one's own: half of the identity."""

    def multiplier(self, answer, cotangent, guess=None):
        return jax.tree.map(lambda x: 0.5 * x, cotangent), {}

    def pairing(self, cost, point, multiplier):
        return jax.jvp(cost, (point,), (multiplier,))[1]


def test_a_solver_of_the_users_own():
    engine = ridge(mlox.Implicit(richardson))
    found = gradient(engine, engine.init(), "penalty")
    assert error(found, jax.grad(closed_form)(START)) < 1e-8


def test_a_method_of_the_users_own():
    engine = ridge(Half())
    fit = engine.init()["fit"].params
    expected = 0.2 * START - mixed_term(0.5 * (fit - 1.0), fit)
    assert error(gradient(engine, engine.init(), "penalty"), expected) < 1e-10
