"""Laws: what every method, solver and graph owes, held against independent answers.

Closed forms, the formulas that define the methods, and the fully solved nested problems
of `nested`, differentiated by central differences or by its own dual numbers.
"""

import dataclasses
import functools
import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.flatten_util import ravel_pytree

import mlox

from .nested import GRAPHS, Graph, Program, slope
from .trees import STANDARD, assert_near

DENSE = mlox.Implicit(mlox.Dense())
GMRES = mlox.Implicit(mlox.GMRES())
AUTO = mlox.Implicit()
CG = mlox.Implicit(mlox.CG(iterations=8))
BICGSTAB = mlox.Implicit(mlox.BiCGStab(iterations=20))
UNROLLED = mlox.Unrolled()
METHODS = {
    "cg": CG,
    "forward": mlox.Forward(),
    "dense": DENSE,
    "difference": mlox.FiniteDifference(),
    "identity": mlox.Implicit(mlox.Identity()),
    "neumann": mlox.Implicit(mlox.Neumann(iterations=3, step=0.1)),
    "sama": mlox.SAMA(),
    "unrolled": UNROLLED,
}
BILEVEL = GRAPHS["bilevel"]
MOMENTUM = optax.sgd(0.1, momentum=0.9)


def quick(function):
    """Compile without optimization, which takes most of the time here."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def without_data(engine):
    return dict.fromkeys(engine.names)


def state_at(engine, theta):
    """Return the state of a new run at some parameters."""
    return {
        name: problem.replace(params=jnp.asarray(theta[name][0]))
        for name, problem in engine.init().items()
    }


def gradient(engine, state, name):
    """Return the hypergradient of a problem without data."""
    batches = without_data(engine)
    return quick(lambda s: engine.hypergradient(s, batches, name)[1])(state)


# Closed forms


@dataclasses.dataclass(frozen=True)
class Closed:
    """A bilevel problem with a known answer and hypergradient at the upper's `x`."""

    upper: object
    lower: object
    x: np.ndarray
    answer: np.ndarray
    gradient: np.ndarray

    def engine(self, method, **options):
        x = mlox.Problem.create(
            name="x",
            params=self.x,
            tx=optax.sgd(0.0),
            loss_fn=lambda params, batch, ctx: self.upper(params, ctx.w.params),
        )
        w = mlox.Problem.create(
            name="w",
            params=self.answer,
            tx=optax.sgd(0.4),
            loss_fn=lambda params, batch, ctx: self.lower(params, ctx.x.params),
            method=method,
            **options,
        )
        return mlox.Engine([x, w], u2l={"x": ["w"]}, l2u={"w": ["x"]})


def ridge(shape):
    """Ridge regression; x is the logarithm of the penalty, of all or each weight."""
    draw = np.random.default_rng(0).normal
    A, b, B, c = (draw(size=s) for s in ((9, 3), 9, (5, 3), 5))
    x = 0.3 * draw(size=shape)
    hessian = A.T @ A / 9 + np.diag(np.broadcast_to(np.exp(x), 3))
    w = np.linalg.solve(hessian, A.T @ b / 9)
    multiplier = np.linalg.solve(hessian, B.T @ (B @ w - c))
    response = -np.exp(x) * w * multiplier
    return Closed(
        lambda x, w: 0.5 * jnp.sum((B @ w - c) ** 2) + 0.1 * jnp.sum(x**2),
        lambda w, x: (
            jnp.sum((A @ w - b) ** 2) / 18 + 0.5 * jnp.exp(x) @ w**2
            if shape
            else jnp.sum((A @ w - b) ** 2) / 18 + 0.5 * jnp.exp(x) * jnp.sum(w**2)
        ),
        x,
        w,
        0.2 * x + (response if shape else response.sum()),
    )


def quadratic():
    """A quadratic upper over a quadratic lower, of different sizes."""
    draw = np.random.default_rng(1).normal
    root, D, E, a, x = (draw(size=s) for s in ((4, 4), (4, 3), (3, 4), 4, 3))
    hessian = np.eye(4) + 0.1 * root @ root.T
    w = np.linalg.solve(hessian, D @ x)
    multiplier = np.linalg.solve(hessian, w - a + E.T @ x)
    return Closed(
        lambda x, w: 0.5 * jnp.sum((w - a) ** 2) + x @ E @ w + 0.5 * jnp.sum(x**2),
        lambda w, x: 0.5 * w @ hessian @ w - w @ D @ x,
        x,
        w,
        x + E @ w + D.T @ multiplier,
    )


CLOSED = {"ridge": ridge((3,)), "ridge, scalar": ridge(()), "quadratic": quadratic()}


SERIES = mlox.Implicit(mlox.Neumann(iterations=150, step=0.4))


@pytest.mark.parametrize(
    ("case", "method", "steps", "tolerance"),
    [
        *((case, DENSE, 1, 1e-12) for case in CLOSED),
        *((case, UNROLLED, 150, 1e-6) for case in CLOSED),
        *(("ridge", method, 1, 1e-12) for method in (CG, GMRES, BICGSTAB)),
        *((case, SERIES, 1, 1e-6) for case in ("ridge", "quadratic")),
        ("quadratic", CG, 1, 1e-12),
    ],
)
def test_hypergradient_equals_closed_form(case, method, steps, tolerance):
    case = CLOSED[case]
    engine = case.engine(method, unroll_steps=steps)
    batches = without_data(engine)
    found = quick(lambda s: engine.hypergradient(s, batches, "x"))(engine.init())
    assert_near(found[0], case.upper(case.x, case.answer), 1e-12)
    assert_near(found[1], case.gradient, tolerance)


# The methods that leave the Hessian out, against the formulas that define them


def update_jacobian(tx, opt_state, params, gradient):
    """Take central differences of the update that an optimizer makes of a gradient."""
    update = jax.jit(lambda g: tx.update(g, opt_state, params)[0])
    shifts = 1e-5 * np.eye(len(gradient))
    with STANDARD:
        ends = [(update(gradient + h), update(gradient - h)) for h in shifts]
    return np.stack([(up - down) / 2e-5 for up, down in ends], axis=-1)


def by_formula(program, method, theta, tx, opt_state):
    """Return dC_t/dt - d/dt <lambda, dC_c/dc>, lambda as the method chooses it."""
    upper, lower = (functools.partial(program.cost, name) for name in "tc")
    direct, vector = (slope(upper, theta, name)[0] for name in "tc")
    inner = lambda theta: slope(lower, theta, "c")
    if isinstance(method, mlox.SAMA):
        params = jnp.asarray(theta["c"][0])
        jacobian = update_jacobian(tx, opt_state, params, inner(theta)[0])
        vector = -jacobian.T @ vector
    if isinstance(method, mlox.Implicit) or method.epsilon is None:
        return direct - slope(lambda theta: inner(theta) @ vector, theta, "t")[0]
    e = method.epsilon / np.linalg.norm(vector)
    up, down = (
        slope(lower, {**theta, "c": theta["c"] + s * e * vector}, "t")[0]
        for s in (1, -1)
    )
    return direct - (up - down) / (2 * e)


ADAM = optax.adam(0.1)
CLIPPED = optax.chain(
    optax.clip_by_global_norm(0.5), optax.adam(optax.exponential_decay(0.1, 1, 0.9))
)


@pytest.mark.parametrize(
    ("method", "tx"),
    [
        (mlox.Implicit(mlox.Identity()), MOMENTUM),
        (mlox.FiniteDifference(), ADAM),
        (mlox.FiniteDifference(epsilon=0.5), MOMENTUM),
        (mlox.SAMA(), optax.sgd(0.1)),
        (mlox.SAMA(), ADAM),
        (mlox.SAMA(), optax.adamw(0.1, weight_decay=0.1)),
        (mlox.SAMA(), CLIPPED),
        (mlox.SAMA(epsilon=0.5), ADAM),
    ],
    ids=[
        "identity",
        "difference",
        "difference, long",
        "sama, sgd",
        "sama, adam",
        "sama, adamw",
        "sama, clipped",
        "sama, difference",
    ],
)
def test_method_without_hessian_equals_its_formula(method, tx):
    """And the upper descends along what `hypergradient` returns."""
    program = Program(BILEVEL)
    lower, upper = {"tx": tx, "unroll_steps": 3}, {"tx": optax.sgd(1.0)}
    engine = program.engine({"c": method}, c=lower, t=upper)
    theta, batches = program.theta(), without_data(engine)
    state = state_at(engine, theta)
    after, found = quick(
        lambda s: (engine.step(s, batches)[0], engine.hypergradient(s, batches, "t")[1])
    )(state)
    theta["c"] = np.asarray(after["c"].params)[None]
    expected = by_formula(program, method, theta, tx, after["c"].opt_state)
    assert_near(found, expected, 1e-8)
    assert_near(state["t"].params - after["t"].params, found, 1e-12)


# Nested graphs, against central differences of the fully solved nested problem


@functools.cache
def solved_problem(graph):
    """Return a program, its solution and the derivative for its first problem."""
    program = Program(GRAPHS[graph])
    top = program.graph.names[0]
    theta = program.stationary(top)
    return program, theta, program.differences(top, theta)


@pytest.mark.parametrize("graph", GRAPHS)
def test_reference_equals_dual_numbers(graph):
    """Central differences against dual numbers, and every answer is stationary."""
    program, theta, expected = solved_problem(graph)
    top = program.graph.names[0]
    found = slope(functools.partial(program.total, top), theta, top)[0]
    assert_near(found, expected, 1e-9)
    for name in program.graph.movers(top):
        total = functools.partial(program.total, name)
        assert np.abs(slope(total, theta, name)).max() < 1e-11


@pytest.mark.parametrize(
    ("graph", "methods"),
    [
        *((g, DENSE) for g in GRAPHS if g not in ("siblings", "diamond")),
        *((g, AUTO) for g in ("bilevel", "uncoupled reader", "siblings")),
        *((graph, CG) for graph in ("two lowers", "two uppers")),
        ("three levels", GMRES),
        ("lower of two levels", BICGSTAB),
        ("two lowers", {"a": CG, "b": DENSE}),
        ("diamond", {"c": CG, "p": DENSE, "q": DENSE}),
        ("three levels", {"c": CG, "p": BICGSTAB}),
    ],
)
def test_hypergradient_equals_differences_of_solved_problem(graph, methods):
    program, theta, expected = solved_problem(graph)
    engine = program.engine(methods)
    found = gradient(engine, state_at(engine, theta), program.graph.names[0])
    assert_near(found, expected, 1e-9)


# Direct coupling: the sum over paths


def along(program, theta, path):
    """Apply Betty's rule to a path (k, ..., lower, k), with dense matrices.

    The vector dC_k/dtheta starts at what k reads. Each member on the way down answers
    by -(its partial Hessian)^{-1}, and hands on through its partial cross derivative.
    """
    vector = slope(functools.partial(program.cost, path[0]), theta, path[1])[0]
    for name, upper in itertools.pairwise(path[1:]):
        cost = functools.partial(program.cost, name)
        partial = functools.partial(lambda c, n, x: slope(c, x, n), cost, name)
        hessian, cross = (slope(partial, theta, n)[0] for n in (name, upper))
        vector = -cross @ np.linalg.solve(hessian, vector)
    return vector


def sum_of_paths(engine, program, theta, name):
    direct = slope(functools.partial(program.cost, name), theta, name)[0]
    return direct + sum(along(program, theta, path) for path in engine.paths[name])


@pytest.mark.parametrize(
    "graph", ["three levels", "skip edge", "lower of two levels", "diamond"]
)
def test_direct_coupling_equals_sum_over_paths(graph):
    program = Program(GRAPHS[graph])
    theta = program.theta()
    engine = program.engine(DENSE, coupling="direct")
    found = gradient(engine, state_at(engine, theta), "t")
    assert_near(found, sum_of_paths(engine, program, theta, "t"), 1e-10)


def test_direct_coupling_differs_from_total():
    program, theta, expected = solved_problem("three levels")
    engine = program.engine(DENSE, coupling="direct")
    found = gradient(engine, state_at(engine, theta), "t")
    with pytest.raises(AssertionError):
        assert_near(found, expected, 0.01)


# Mixed methods, against central differences of the very program

NEWTON = {"tx": optax.sgd(1.0)}


def momentum(count):
    return {"tx": MOMENTUM, "unroll_steps": count}


def steps(program, name, count, before=lambda theta: theta):
    """Return a loop of `MOMENTUM` on the total cost; `before` moves what is below."""

    def run(theta):
        for _ in range(count):
            gradient = slope(functools.partial(program.total, name), theta, name)
            theta = before(theta)
            trace = gradient + 0.9 * theta[f"{name} trace"]
            own = theta[name] - 0.1 * trace
            theta = {**theta, name: own, f"{name} trace": trace}
        return theta

    return run


def start_of(*names):
    draw = np.random.default_rng(5).normal
    traces = {f"{name} trace": np.zeros(2) for name in names}
    return {name: 0.5 * draw(size=2) for name in names} | traces


def constant(start, like):
    """Return the dual numbers of constants, for as many points as others are."""
    fixed = {name: np.zeros_like(like) for name in start}
    for name, value in start.items():
        fixed[name][0] += value
    return fixed


def from_start(run, start):
    return lambda theta: run({**theta, **constant(start, theta["t"])})


def solved_by_a_step(program, name):
    """Make a cost quadratic with a unit Hessian: one step of sgd(1) solves it."""
    _, *rest = program.parts[name]
    program.parts[name] = (np.eye(2), *rest)
    program.quartic[name] = 0.0


def unrolled_under_implicit(graph=GRAPHS["skip edge"]):
    """The residual of p holds the window of c."""
    program, start = Program(graph), start_of("c")
    program.run["c"] = from_start(steps(program, "c", 3), start)
    methods = {"c": UNROLLED, "p": DENSE, "q": DENSE}
    engine = program.engine(methods, c=momentum(3))
    return program, engine, program.stationary("t"), start, None


def unrolled_under_two_players():
    """Two implicit problems lead one unrolled lower, which the top reads too."""
    u2l = {"t": ["p", "q"], "p": ["c"], "q": ["c"]}
    l2u = {"c": ["p", "q", "t"], "p": ["t"], "q": ["t"]}
    return unrolled_under_implicit(Graph(("t", "p", "q", "c"), u2l, l2u))


def unrolled_in_two_windows():
    """An implicit problem makes two steps: its lower starts where the first ended."""
    program, start = Program(GRAPHS["skip edge"]), start_of("c")
    run, theta, second = steps(program, "c", 2), program.theta(), start
    for _ in range(25):  # p is stationary for the window that starts after the first
        program.run["c"] = from_start(run, second)
        theta = program.answered(frozenset("pc"), theta)
        first = from_start(run, start)(theta)
        second = {name: first[name][0] for name in start}
    methods, again = {"c": UNROLLED, "p": DENSE}, {"unroll_steps": 2}
    engine = program.engine(methods, c=momentum(2), p=again)
    return program, engine, {n: theta[n] for n in "tpc"}, start, None


def unrolled_beside_implicit():
    program, start = Program(GRAPHS["two lowers"]), start_of("a")
    program.run["a"] = from_start(steps(program, "a", 3), start)
    engine = program.engine({"a": UNROLLED, "b": CG}, a=momentum(3))
    return program, engine, program.stationary("t"), start, None


def unrolled_reader_of_implicit():
    """Every step of p reads the answer of c, which responds to t and not to p."""
    program, start = Program(GRAPHS["uncoupled reader"]), start_of("p")
    solved_by_a_step(program, "c")
    run = from_start(steps(program, "p", 3), start)
    value = lambda theta: program.cost(
        "t", run(program.answered(frozenset("c"), theta))
    )
    engine = program.engine({"p": UNROLLED}, c=NEWTON, p=momentum(3))
    return program, engine, program.theta(), start, value


def implicit_under_unrolled():
    """Each step of p descends on its total cost, with c at its answer."""
    u2l, l2u = {"t": ["p", "c"], "p": ["c"]}, {"c": ["p"], "p": ["t"]}
    program, start = Program(Graph(("t", "p", "c"), u2l, l2u)), start_of("p")
    solved_by_a_step(program, "c")
    program.run["p"] = from_start(steps(program, "p", 3), start)
    engine = program.engine({"c": CG, "p": UNROLLED}, c=NEWTON, p=momentum(3))
    return program, engine, program.theta(), start, None


def unrolled_under_unrolled():
    """The loop of c goes on where it was, and its trace too."""
    program, start = Program(GRAPHS["skip edge"]), start_of("p", "c")
    program.run["c"] = steps(program, "c", 3)
    run = from_start(steps(program, "p", 2, before=program.run["c"]), start)
    value = lambda theta: program.cost("t", run(theta))
    engine = program.engine(UNROLLED, c=momentum(3), p=momentum(2))
    return program, engine, program.theta(), start, value


def implicit_over_unrolled_over_implicit():
    """The answer of c, inside the window of p, inside the residual of t."""
    program, start = Program(GRAPHS["four levels"]), start_of("p")
    solved_by_a_step(program, "c")
    program.run["p"] = from_start(steps(program, "p", 1), start)
    methods = {"c": DENSE, "p": UNROLLED, "t": DENSE}
    engine = program.engine(methods, c=NEWTON, p=momentum(1))
    return program, engine, program.stationary("s"), start, None


@pytest.mark.parametrize(
    "make",
    [
        unrolled_under_implicit,
        unrolled_under_two_players,
        pytest.param(unrolled_in_two_windows, marks=pytest.mark.slow),
        unrolled_beside_implicit,
        unrolled_reader_of_implicit,
        implicit_under_unrolled,
        unrolled_under_unrolled,
        pytest.param(implicit_over_unrolled_over_implicit, marks=pytest.mark.slow),
    ],
    ids=lambda make: make.__name__,
)
def test_mixed_methods_equal_differences_of_program(make):
    program, engine, theta, start, value = make()
    top = program.graph.names[0]
    expected = program.differences(top, theta, value)
    begin = {**theta, **{name: x[None] for name, x in start.items()}}
    assert_near(gradient(engine, state_at(engine, begin), top), expected, 1e-9)


# Methods do not change values; the window of an unrolled answer


def leaf_by_hand(program, theta, count):
    """Run the lower of a bilevel program by NumPy; return it, and its trace."""
    fixed = constant(start_of("c"), theta["t"])
    theta = steps(program, "c", count)({**theta, **fixed})
    return theta["c"][0], theta["c trace"][0]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_step_returns_same_values_for_every_method(method):
    program = Program(BILEVEL)
    theta, batches = program.theta(), None
    engine = program.engine({"c": method}, c=momentum(3))
    theta["c"] = start_of("c")["c"][None]
    state, batches = state_at(engine, theta), without_data(engine)
    after, metrics = quick(engine.step)(state, batches)
    params, trace = leaf_by_hand(program, theta, 3)
    assert_near(after["c"].params, params, 1e-14)
    assert_near(after["c"].opt_state[0].trace, trace, 1e-14)
    assert int(after["c"].step) == 3
    assert metrics["c/loss"].shape == (3,)


def truncated(program, count, last):
    """Return the cost of the upper with the first steps of the lower as constants."""

    def value(theta):
        fixed = constant(start_of("c"), theta["t"])
        run = lambda n, c: steps(program, "c", n)({**theta, **c})
        fixed = run(max(0, count - last), fixed)
        fixed = {name: fixed[name] * 1.0 for name in ("c", "c trace")}
        for x in fixed.values():
            x[1:] = 0.0
        return program.cost("t", run(min(count, last), fixed))

    return value


@pytest.mark.parametrize(
    ("count", "method"),
    [
        *((7, mlox.Unrolled(levels=levels)) for levels in (0, 1, 2, 3)),
        *((12, mlox.Unrolled(levels=levels)) for levels in (0, 2, 4)),
        *((count, mlox.Unrolled(checkpoint="segments")) for count in (1, 2)),
        *((7, mlox.Unrolled(last_steps=last, levels=2)) for last in (1, 3, 7, 9)),
        *((12, mlox.Unrolled(last_steps=5, levels=levels)) for levels in (0, 3)),
        *((7, mlox.Forward(last_steps=last)) for last in (None, 3)),
    ],
)
def test_loop_equals_derivative_of_program(count, method):
    program = Program(BILEVEL)
    theta = program.theta() | {"c": start_of("c")["c"][None]}
    engine = program.engine({"c": method}, c=momentum(count))
    value = truncated(program, count, method.last_steps or count)
    found = gradient(engine, state_at(engine, theta), "t")
    assert_near(found, slope(value, theta, "t")[0], 1e-12)


def test_truncated_derivative_differs_from_whole():
    program = Program(BILEVEL)
    theta = program.theta() | {"c": start_of("c")["c"][None]}

    def truncate(last):
        method = mlox.Unrolled(last_steps=last)
        engine = program.engine({"c": method}, c=momentum(7))
        return gradient(engine, state_at(engine, theta), "t")

    with pytest.raises(AssertionError):
        assert_near(truncate(1), truncate(None), 0.01)


# Hypergradients are differentiated


def at_solution(graph, methods, **options):
    program = Program(GRAPHS[graph])
    theta = program.stationary(program.graph.names[0])
    return program, program.engine(methods, **options), theta, {}, None


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(at_solution, "bilevel", AUTO, c={"tx": MOMENTUM}),
        pytest.param(
            functools.partial(at_solution, "three levels", DENSE),
            marks=pytest.mark.slow,
        ),
        unrolled_reader_of_implicit,
    ],
    ids=["implicit", "total", "unrolled"],
)
def test_hypergradient_derivatives_equal_differences(make):
    """In reverse and in forward mode, against differences of solved gradients."""
    program, engine, theta, start, value = make()
    value = value or functools.partial(program.total, "t")
    expected = program.differences("t", theta, lambda theta: slope(value, theta, "t"))
    state = state_at(engine, {**theta, **{n: x[None] for n, x in start.items()}})
    batches = without_data(engine)

    def gradient_at(x):
        there = {**state, "t": state["t"].replace(params=x)}
        return engine.hypergradient(there, batches, "t")[1]

    square = lambda x: 0.5 * jnp.sum(gradient_at(x) ** 2)
    first, reverse, forward = quick(
        lambda x: (gradient_at(x), jax.grad(square)(x), jax.jacfwd(gradient_at)(x))
    )(state["t"].params)
    assert_near(forward, expected, 1e-9)
    assert_near(reverse, expected @ first, 1e-9)


def test_attach_differentiates_cube_root_three_times():
    def cube_root(x):
        found = jnp.cbrt(jax.lax.stop_gradient(x))
        return mlox.attach(lambda y, x: y**3 - x, found, x, solver=mlox.Dense())

    derivative = cube_root
    for expected in (1 / 12, -1 / 144, 5 / 3456):
        derivative = jax.grad(derivative)
        assert_near(quick(derivative)(8.0), expected, 1e-12)


@pytest.mark.parametrize("outer", [jax.grad, jax.jacfwd])
@pytest.mark.parametrize("inner", [jax.grad, jax.jacfwd])
def test_attach_in_scan_differentiates_twice(inner, outer):
    def value(x, attach):
        def body(p, _):
            return p - 0.3 * p * (attach(p) - x), None

        return jax.lax.scan(body, 0.5 * x, None, length=3)[0]

    def attach(p):
        found = jax.lax.stop_gradient(jnp.sin(p))
        residual = lambda y, p: y - jnp.sin(p)
        return mlox.attach(residual, found, p, solver=mlox.Dense())

    found, expected = (
        quick(outer(inner(functools.partial(value, attach=answer))))(0.7)
        for answer in (attach, jnp.sin)
    )
    assert_near(found, expected, 1e-12)


# Trees, dtypes and transformations


class Network(nn.Module):
    """A network whose layers have a dtype each."""

    first: jnp.dtype
    second: jnp.dtype

    @nn.compact
    def __call__(self, x):
        hidden = nn.Dense(3, dtype=self.first)(x)
        return nn.Dense(1, dtype=self.second)(jnp.tanh(hidden))[..., 0]


def network(method, first, dtype):
    """Fit a Flax network, with one penalty for all, a scalar in a nested dict."""
    model = Network(first, dtype)
    x = jnp.linspace(-1, 1, 8, dtype=dtype)[:, None]
    layers = model.init(jax.random.key(0), x)["params"]
    dtypes = {"Dense_0": first, "Dense_1": dtype}
    variables = {
        "params": {
            layer: jax.tree.map(lambda p, layer=layer: p.astype(dtypes[layer]), params)
            for layer, params in layers.items()
        }
    }

    def fit(params, batch, ctx):
        error = model.apply(params, x) - jnp.sin(3 * x[:, 0])
        squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)]
        decay = sum(square.astype(dtype) for square in squares)
        return (error**2).mean() + jnp.exp(ctx.penalty.params["of"]["all"]) * decay

    def valid(params, batch, ctx):
        return {"loss": (ctx.fit(0.9 * x) ** 2).mean(), "log": params["of"]["all"]}

    penalty = mlox.Problem.create(
        name="penalty",
        params={"of": {"all": jnp.asarray(-3.0, dtype)}},
        tx=optax.adam(0.1),
        loss_fn=valid,
    )
    weights = mlox.Problem.create(
        name="fit",
        params=variables,
        tx=optax.sgd(0.1, 0.9),
        loss_fn=fit,
        apply_fn=model.apply,
        method=method,
        unroll_steps=2,
    )
    u2l, l2u = {"penalty": ["fit"]}, {"fit": ["penalty"]}
    return mlox.Engine([penalty, weights], u2l=u2l, l2u=l2u)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_step_returns_same_structure_and_dtypes(method):
    """Of a network with one layer in float32 and one in bfloat16."""
    engine = network(method, jnp.float32, jnp.bfloat16)
    state = engine.init()
    after, metrics = jax.eval_shape(engine.step, state, without_data(engine))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert metrics["fit/loss"].shape == (2,)
    assert metrics["penalty/log"].shape == (1,)


def test_hypergradient_in_bfloat16_is_near_float64():
    """What is solved for is solved in higher precision where it must be."""
    found = {}
    for dtype in (jnp.bfloat16, jnp.float64):
        engine = network(DENSE, dtype, dtype)
        hypergradient = gradient(engine, engine.init(), "penalty")
        found[dtype] = jax.tree.map(lambda x: x.astype(jnp.float64), hypergradient)
    assert_near(found[jnp.bfloat16], found[jnp.float64], 0.3)


def flat_costs(engine):
    """Return C_t(w, x) and C_c(w, x) of a `network` at raveled weights."""
    state = engine.init()
    _, unravel = ravel_pytree(state["fit"].params)

    def at(problem, neighbour):
        def cost(w, x):
            values = {"fit": unravel(w), "penalty": {"of": {"all": x}}}
            view = mlox.Neighbour(values[neighbour], None, state[neighbour].apply_fn)
            ctx = mlox.Context(problem, {neighbour: view}, None, 0, None)
            returned = state[problem].loss_fn(values[problem], None, ctx)
            return returned["loss"] if isinstance(returned, dict) else returned

        return cost

    return at("penalty", "fit"), at("fit", "penalty")


def test_hypergradient_of_trees_equals_formula_of_vectors():
    """Of a Flax network: the formula with its dense Hessian, after two steps."""
    engine = network(DENSE, jnp.float64, jnp.float64)
    state, batches = engine.init(), without_data(engine)
    after, found = quick(
        lambda s: (
            engine.step(s, batches)[0],
            engine.hypergradient(s, batches, "penalty")[1],
        )
    )(state)
    upper, lower = flat_costs(engine)

    @quick
    def formula(w, x):
        hessian = jax.hessian(lower)(w, x)
        multiplier = jnp.linalg.solve(hessian, jax.grad(upper)(w, x))
        return -jax.grad(lambda x: jax.grad(lower)(w, x) @ multiplier)(x)

    w, _ = ravel_pytree(after["fit"].params)
    expected = formula(w, state["penalty"].params["of"]["all"])
    assert_near(found["of"]["all"], expected, 1e-10)


def small(method, steps=2, tx=MOMENTUM, count=None):
    """Make a bilevel engine with data for the lower; `count` is called at a trace."""

    def lower(params, batch, ctx):
        if count is not None:
            count()
        return jnp.sum((params - batch) ** 2) + jnp.exp(ctx.x.params) @ params**2

    def upper(params, batch, ctx):
        return jnp.sum((ctx.w.params - 1.0) ** 2)

    x = mlox.Problem.create(name="x", params=jnp.zeros(3), tx=tx, loss_fn=upper)
    w = mlox.Problem.create(
        name="w",
        params=jnp.zeros(3),
        tx=tx,
        loss_fn=lower,
        method=method,
        unroll_steps=steps,
    )
    return mlox.Engine([x, w], u2l={"x": ["w"]}, l2u={"w": ["x"]})


@pytest.mark.parametrize("method", [CG, UNROLLED], ids=["cg", "unrolled"])
def test_step_returns_same_under_jit_scan_vmap_donation(method):
    engine, runs, cycles = small(method), 3, 4
    data = np.random.default_rng(0).normal(size=(runs, cycles, 2, 3))
    batches = {"x": None, "w": jnp.asarray(data)}
    pick = lambda *index: jax.tree.map(lambda leaf: leaf[index], batches)
    states = []
    for run in range(runs):
        state = engine.init()
        x = state["x"].replace(params=jnp.full(3, 0.1 * run))
        states.append({**state, "x": x})
    step = engine.compile(donate=True)
    expected, metrics = [], []
    for run, begin in enumerate(states):
        state = jax.tree.map(jnp.copy, begin)
        for cycle in range(cycles):
            given = state
            state, found = step(given, pick(run, cycle))
            assert given["w"].params.is_deleted()
            metrics.append({key: found[key] for key in ("w/loss", "x/loss")})
        expected.append(state)
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    scanned = quick(jax.vmap(lambda s, b: jax.lax.scan(engine.step, s, b)))
    found, history = scanned(stack(states), batches)
    assert_near(found, stack(expected), 1e-12)
    flat = {key: history[key].reshape(runs * cycles, -1) for key in metrics[0]}
    assert_near(flat, stack(metrics), 1e-12)
    assert jax.tree.structure(found) == jax.tree.structure(states[0])


def copied(value):
    """Return an equal value that is another object, all the way down."""
    if not dataclasses.is_dataclass(value):
        return value
    fields = {f.name: copied(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return type(value)(**fields)


@pytest.mark.parametrize("method", METHODS)
def test_step_does_not_retrace_for_equal_configurations(method):
    """All values made anew, but for functions: the costs, and those of optax."""
    traces = []
    first = small(METHODS[method], count=lambda: traces.append(1))
    again = [
        problem.replace(method=copied(problem.method)) for problem in first.problems
    ]
    second = mlox.Engine(again, u2l={"x": ["w"]}, l2u={"w": ["x"]})
    assert second == first
    assert hash(second) == hash(first)
    batches = {"x": None, "w": jnp.zeros((2, 3))}
    first.compile(donate=False)(first.init(), batches)
    count = len(traces)
    second.compile(donate=False)(second.init(), batches)
    assert len(traces) == count > 0


def equations(program):
    """Count the equations of a program, with those of the programs inside."""
    inner = jax.tree.leaves(
        [list(equation.params.values()) for equation in program.eqns],
        is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr),
    )
    programs = [x for x in inner if isinstance(x, Jaxpr | ClosedJaxpr)]
    return len(program.eqns) + sum(map(equations, programs))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_program_size_is_independent_of_steps(method):
    sizes = []
    for count in (30, 400):  # whole segments, in both
        engine = small(method, count)
        batches = {"x": None, "w": jnp.zeros((count, 3))}
        traced = jax.make_jaxpr(engine.step)(engine.init(), batches)
        sizes.append(equations(traced.jaxpr))
    assert sizes[0] == sizes[1] > 20


# A method and a solver of one's own: plain values


def richardson(matvec, b, guess=None):
    def step(_, x):
        return jax.tree.map(lambda x, r, y: x + 0.3 * (r - y), x, b, matvec(x))

    return jax.lax.fori_loop(0, 150, step, b if guess is None else guess), {}


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Take the Hessian for a multiple of the identity."""

    by: float

    def multiplier(self, answer, cotangent, guess=None):
        return jax.tree.map(lambda x: self.by * x, cotangent), {"by": self.by}

    def pairing(self, cost, point, multiplier):
        return jax.jvp(cost, (point,), (multiplier,))[1]


def test_own_solver_returns_closed_form():
    engine = CLOSED["ridge"].engine(mlox.Implicit(richardson))
    found = gradient(engine, engine.init(), "x")
    assert_near(found, CLOSED["ridge"].gradient, 1e-8)


def test_own_method_returns_its_formula_and_report():
    """It takes problems one by one, and its report is among the metrics."""
    program = Program(GRAPHS["three levels"])
    theta = program.theta()
    engine = program.engine(Scaled(0.5), t={"tx": optax.sgd(1.0)})
    state = state_at(engine, theta)
    after, metrics = quick(engine.step)(state, without_data(engine))
    direct, vector = (
        slope(functools.partial(program.cost, "t"), theta, n)[0] for n in "tp"
    )
    inner = lambda x: slope(functools.partial(program.cost, "p"), x, "p")
    expected = direct - 0.5 * slope(lambda x: inner(x) @ vector, theta, "t")[0]
    assert_near(state["t"].params - after["t"].params, expected, 1e-10)
    assert metrics["t/p/by"].tolist() == [0.5]
