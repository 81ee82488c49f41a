"""Answers on constraint sets, against the constrained lower solved anew."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import projections

import mlox


@pytest.fixture(autouse=True)
def strict_promotion():
    """Allow what optax does: its simplex divides floats by integers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


EDGES = {"up": ["low"]}, {"low": ["up"]}
NO_DATA = {"up": None, "low": None}
NORMAL = jnp.array([1.0, 2.0, -1.0, 1.0])


def project_polytope(v):
    """Project onto v >= 0, sum(v) <= 1 by Dykstra's algorithm, as a user may write."""

    def sweep(carry, _):
        x, p, q = carry
        y = jnp.maximum(x + p, 0.0)
        p = x + p - y
        z = y + q - jnp.maximum(jnp.sum(y + q) - 1.0, 0.0) / v.size
        return (z, p, y + q - z), None

    zero = jnp.zeros_like(v)
    return jax.lax.scan(sweep, (v, zero, zero), None, length=60)[0][0]


SETS = {
    "box": lambda v: projections.projection_box(v, -0.3, 0.3),
    "non-negative": projections.projection_non_negative,
    "simplex": projections.projection_simplex,
    "l1 ball": lambda v: projections.projection_l1_ball(v, 1.0),
    "l2 ball": lambda v: projections.projection_l2_ball(v, 0.5),
    "l2 sphere": lambda v: projections.projection_l2_sphere(v, 0.5),
    "hyperplane": lambda v: projections.projection_hyperplane(v, NORMAL, 0.7),
    "halfspace": lambda v: projections.projection_halfspace(v, NORMAL, -0.7),
    "polytope": project_polytope,
}
"""Projections onto sets that are active at the answers below, on vectors [4]."""

LOOSE = {
    "box": lambda v: projections.projection_box(v, -2.0, 2.0),
    "l1 ball": lambda v: projections.projection_l1_ball(v, 30.0),
    "l2 ball": lambda v: projections.projection_l2_ball(v, 9.1),
    "halfspace": lambda v: projections.projection_halfspace(v, NORMAL, 20.0),
}
"""Projections that are inactive there."""


class Lower:
    """A convex cost of some vectors in a tree, each projected onto a set of its own."""

    def __init__(self, sets, seed=0):
        self.sets = sets
        draw = np.random.default_rng(seed).normal
        size = 4 * len(sets)
        root = draw(size=(size, size)) / size**0.5
        self.matrix = jnp.array(root @ root.T + np.eye(size))
        self.cross = jnp.array(2 * draw(size=(size, 2)))
        self.x = jnp.array(draw(size=2))
        self.step = 0.9 / float(np.linalg.eigvalsh(self.matrix)[-1] + 2)

    def project(self, tree):
        return {n: self.sets[n](v) for n, v in tree.items()}

    def cost(self, tree, x):
        y = jnp.concatenate([tree[n] for n in self.sets])
        own = 0.5 * y @ self.matrix @ y + 0.1 * jnp.sum(y**4)
        return own - y @ self.cross @ x

    @staticmethod
    def upper(tree, x):
        each = [jnp.sum((v - 1) ** 2 + jnp.sin(v)) for v in tree.values()]
        return sum(each) + 0.1 * x @ x

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def solve(self, x, most=4000):
        """Make steps of projected gradient descent, by default to rounding errors."""
        start = self.project({n: 0.1 * jnp.arange(1, 5.0) for n in self.sets})

        def step(state):
            y, _, made = state
            G = jax.grad(self.cost)(y, x)
            z = self.project(jax.tree.map(lambda v, g: v - self.step * g, y, G))
            moved = optax.tree.norm(jax.tree.map(jnp.subtract, z, y))
            return z, moved, made + 1

        goes_on = lambda state: (state[1] > 1e-15) & (state[2] < most)
        return jax.lax.while_loop(goes_on, step, (start, jnp.inf, 0))[0]

    def differences(self):
        """Differentiate the upper's cost at solved answers, to the fourth order."""
        e = 1e-3
        shifts = e * jnp.concatenate([k * jnp.eye(2) for k in (1.0, -1.0, 2.0, -2.0)])
        value = jax.jit(jax.vmap(lambda x: self.upper(self.solve(x), x)))
        up, down, up2, down2 = jnp.split(value(self.x[None] + shifts), 4)
        return (8 * (up - down) - (up2 - down2)) / (12 * e)

    def engine(self, method=None, params=None, project=True, rate=0.1, **options):
        """Make an engine with the answer, by default the solved one, which stays."""
        parts = {
            "params": self.solve(self.x) if params is None else params,
            "tx": optax.sgd(0.0),
            "project": self.project if project else None,
            "method": method,
            **options,
        }
        up = mlox.Problem.create(
            name="up",
            params=self.x.astype(jax.tree.leaves(parts["params"])[0].dtype),
            tx=optax.sgd(rate),
            loss_fn=lambda params, batch, ctx: self.upper(ctx.low.params, params),
        )
        cost = lambda params, batch, ctx: self.cost(params, ctx.up.params)
        low = mlox.Problem.create(name="low", **{"loss_fn": cost, **parts})
        return mlox.Engine([up, low], *EDGES)


def hypergradient(engine, state=None, **options):
    found = lambda state: engine.hypergradient(state, NO_DATA, "up")[1]
    return jax.jit(found, **options)(engine.init() if state is None else state)


def reports(engine):
    _, metrics = jax.jit(engine.step)(engine.init(), NO_DATA)
    return {key[7:]: x for key, x in metrics.items() if key.startswith("up/low/")}


def error(found, expected):
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


def test_hypergradient_is_that_of_the_constrained_answer():
    lower = Lower(SETS)
    expected = lower.differences()
    assert error(hypergradient(lower.engine()), expected) < 1e-8
    assert error(hypergradient(lower.engine(project=False)), expected) > 0.5


def test_inactive_projection_changes_no_bit():
    lower = Lower(LOOSE)
    # As XLA compiles by default: without optimization it orders sums by its fusions.
    options = {"compiler_options": {"xla_backend_optimization_level": 3}}
    found = [hypergradient(lower.engine(project=p), **options) for p in (True, False)]
    np.testing.assert_array_equal(*found)


SOLVERS = (
    mlox.CG(60),  # far more than there are tangents
    mlox.CG(iterations=60, tolerance=1e-14),
    mlox.MINRES(),
    mlox.GMRES(),
    mlox.BiCGStab(),
    mlox.Richardson(3000, step=0.15),
    mlox.Neumann(3000, step=0.15),
    mlox.Dense(),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["box", "simplex", "l2 ball", "polytope"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_every_solver_finds_the_multiplier_along_the_tangents(name, solver):
    lower = Lower({name: SETS[name]})
    expected = lower.differences()
    engine = lower.engine(mlox.Implicit(solver))
    assert error(hypergradient(engine), expected) < 1e-8
    # The multiplier is a tangent, and the gradient is normal to the set.
    assert abs(reports(engine)["gap"]) < 1e-12
    assert reports(engine)["asymmetry"] < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_ignoring_a_constraint_is_far_off(name):
    lower = Lower({name: SETS[name]})
    ignored = hypergradient(lower.engine(project=False))
    assert error(ignored, lower.differences()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_error_is_that_of_the_answer_at_one_that_is_nearly_solved(name):
    lower = Lower({name: SETS[name]})
    expected, solved = lower.differences(), lower.solve(lower.x)
    for most in (20, 40, 80):
        near = lower.solve(lower.x, most)
        distance = error(near[name], solved[name])
        found = hypergradient(lower.engine(params=near))
        assert error(found, expected) < 10 * distance + 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_hypergradient_is_right_in_float32(name):
    wide = SETS[name]  # under x64 some of optax's projections return float64
    lower = Lower({name: lambda v: wide(v.astype(jnp.float64)).astype(v.dtype)})
    params = jax.tree.map(lambda v: v.astype(jnp.float32), lower.solve(lower.x))
    found = hypergradient(lower.engine(params=params))
    assert error(found, lower.differences()) < 3e-5


def along(lower, free, inverse):
    """Return dF/dx at the solved answer, of an inverse on the free coordinates."""
    y, x = lower.solve(lower.x), lower.x
    v = np.concatenate([jax.grad(lower.upper)(y, x)[n] for n in lower.sets])
    matrix = np.asarray(lower.matrix) + np.diag(
        1.2 * np.concatenate([*y.values()]) ** 2
    )
    multiplier = np.zeros_like(v)
    multiplier[free] = inverse(matrix[np.ix_(free, free)], v[free])
    return 0.2 * np.asarray(x) + lower.cross.T @ multiplier


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "factor"),
    [
        (mlox.Implicit(mlox.Identity()), 1.0),
        (mlox.FiniteDifference(), 1.0),
        (mlox.SAMA(), 0.1),
        (mlox.SAMA(epsilon=0.01), 0.1),
    ],
    ids=str,
)
def test_methods_without_a_hessian_take_the_tangent_of_the_cotangent(method, factor):
    lower = Lower({"box": SETS["box"]})
    free = np.abs(lower.solve(lower.x)["box"]) < 0.3
    expected = along(lower, free, lambda H, v: factor * v)
    assert 0 < free.sum() < 4
    found = hypergradient(lower.engine(method, tx=optax.sgd(0.1)))
    assert error(found, expected) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        mlox.SOBA(step=0.2),
        mlox.Implicit(mlox.Richardson(1, step=0.2), warm_start=True),
        mlox.Implicit(mlox.CG(2), warm_start=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["box", "simplex", "l2 ball"])
def test_memory_settles_at_the_multiplier(name, method):
    lower = Lower({name: SETS[name]})
    engine = lower.engine(method, rate=0.0)
    step = lambda _, state: engine.step(state, NO_DATA)[0]
    state = jax.jit(lambda state: jax.lax.fori_loop(0, 300, step, state))(engine.init())
    assert error(hypergradient(engine, state), lower.differences()) < 1e-8


@pytest.mark.slow
def test_gauss_newton_is_exact_for_linear_outputs_when_constrained():
    lower = Lower({"simplex": SETS["simplex"]})
    root = jnp.linalg.cholesky(lower.matrix)

    def outputs(params, batch, ctx):
        return root.T @ params["simplex"], params["simplex"]

    def loss(z, batch, ctx):
        own = 0.5 * z[0] @ z[0] + 0.1 * jnp.sum(z[1] ** 4)
        return own - z[1] @ lower.cross @ ctx.up.params

    engine = lower.engine(mlox.GaussNewton(), loss_fn=mlox.Composed(outputs, loss))
    assert error(hypergradient(engine), lower.differences()) < 1e-8


@pytest.mark.slow
def test_each_task_has_its_own_active_constraints():
    lower = Lower({"box": SETS["box"], "l2 ball": SETS["l2 ball"]})
    factors = jnp.array([1.0, -0.7, 0.2])

    def up_loss(params, batch, ctx):
        return jnp.sum(jax.vmap(lambda y: lower.upper(y, params))(ctx.low.params))

    def low_loss(params, batch, ctx):
        return lower.cost(params, factors[ctx.task_index] * ctx.up.params)

    answers = jax.vmap(lambda f: lower.solve(f * lower.x))(factors)
    up = mlox.Problem.create(
        name="up", params=lower.x, tx=optax.sgd(0.1), loss_fn=up_loss
    )
    low = mlox.Problem.create(
        name="low",
        params=jax.tree.map(lambda v: v[0], answers),
        tx=optax.sgd(0.0),
        loss_fn=low_loss,
        project=lower.project,
        tasks=3,
    )
    engine = mlox.Engine([up, low], *EDGES)
    state = engine.init()
    state = {**state, "low": state["low"].replace(params=answers)}
    found = hypergradient(engine, state)

    def total(x):
        value = lambda f: lower.upper(lower.solve(f * x), x)
        return jnp.sum(jax.vmap(value)(factors))

    e = 1e-4
    shifts = e * jnp.eye(2)
    expected = jnp.stack(
        [(total(lower.x + s) - total(lower.x - s)) / (2 * e) for s in shifts]
    )
    assert error(found, expected) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["trainable", "meta_trainable"])
def test_masked_parameters_are_no_unknowns_of_a_constrained_answer(mask):
    lower = Lower({"box": SETS["box"], "l2 ball": SETS["l2 ball"]})
    free = np.concatenate(
        [np.abs(lower.solve(lower.x)["box"]) < 0.3, np.zeros(4, bool)]
    )
    expected = along(lower, free, np.linalg.solve)
    only = {mask: lambda params: {"box": True, "l2 ball": False}}
    assert error(hypergradient(lower.engine(**only)), expected) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["box", "simplex", "l2 ball", "l2 sphere"])
def test_hypergradient_can_be_differentiated_again(name):
    lower = Lower({name: SETS[name]})
    engine = lower.engine(mlox.Implicit(mlox.CG(60, tolerance=1e-14)))
    state = engine.init()

    def slope(x, y):
        low = state["low"].replace(params=y)
        there = {"up": state["up"].replace(params=x), "low": low}
        return engine.hypergradient(there, NO_DATA, "up")[1]

    y = lower.solve(lower.x)
    e = 1e-4
    at = jax.jit(lambda x: slope(x, lower.solve(x)))
    expected = jnp.stack(
        [(at(lower.x + s) - at(lower.x - s)) / (2 * e) for s in e * jnp.eye(2)]
    )
    for derivative in (jax.jacfwd, jax.jacrev):
        found = jax.jit(derivative(lambda x: slope(x, y)))(lower.x)
        assert error(found, expected) < 1e-6


def test_sparsemax_has_its_closed_derivative():
    z = jnp.array([0.9, 0.1, 0.8, -0.3, 0.6])
    w = jnp.array([1.0, -2.0, 3.0, 0.5, -1.0])
    up = mlox.Problem.create(
        name="up",
        params=z,
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: w @ ctx.low.params,
    )
    low = mlox.Problem.create(
        name="low",
        params=jnp.full(5, 0.2),
        tx=optax.sgd(1.0),
        loss_fn=lambda params, batch, ctx: 0.5 * jnp.sum((params - ctx.up.params) ** 2),
        project=projections.projection_simplex,
    )
    found = hypergradient(mlox.Engine([up, low], *EDGES))
    support = projections.projection_simplex(z) > 0
    expected = jnp.where(support, w - jnp.sum(w * support) / jnp.sum(support), 0)
    np.testing.assert_allclose(found, expected, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize(
    "project",
    [
        projections.projection_non_negative,
        lambda v: jnp.maximum(v, 0.0),
        lambda v: projections.projection_box(v, 0.0, jnp.inf),
    ],
)
def test_derivative_is_between_those_of_both_sides_where_nothing_pushes(project):
    # y = max(x, 0) at x = 0: the derivative is 0 on one side, and 1 on the other.
    up = mlox.Problem.create(
        name="up",
        params=jnp.zeros(1),
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: ctx.low.params.sum(),
    )
    low = mlox.Problem.create(
        name="low",
        params=jnp.zeros(1),
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: 0.5 * jnp.sum((params - ctx.up.params) ** 2),
        project=project,
    )
    slope = hypergradient(mlox.Engine([up, low], *EDGES))
    assert 0 <= float(slope[0]) <= 1


@pytest.mark.slow
def test_asymmetry_tells_of_a_function_that_is_no_projection():
    scaled = Lower({"scaled": lambda v: v / jnp.sum(jnp.abs(v))})
    assert reports(scaled.engine())["asymmetry"] > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["box", "simplex", "l2 ball", "l2 sphere"])
def test_fixed_point_of_projected_steps_is_exact_as_it_grows(name):
    lower = Lower({name: SETS[name]})
    engine = lower.engine(mlox.FixedPoint(1500), tx=optax.sgd(0.15))
    assert error(hypergradient(engine), lower.differences()) < 1e-8


@pytest.mark.slow
def test_draws_of_a_constrained_answer_are_taken_along_its_tangents():
    lower = Lower({"l2 ball": SETS["l2 ball"]})
    method = mlox.Implicit(mlox.Neumann(1500, step=0.15), draws=2)
    engine = lower.engine(method, unroll_steps=2)
    assert error(hypergradient(engine), lower.differences()) < 1e-8


class Tower:
    """Three quadratic levels t > p > c, the two lower ones on sets."""

    def __init__(self, middle, lowest, seed=7):
        self.middle, self.lowest = middle, lowest
        draw = np.random.default_rng(seed).normal
        self.cross = {n: jnp.array(0.7 * draw(size=(4, 4))) for n in ("cp", "ct", "pt")}
        self.linear = {n: jnp.array(draw(size=4)) for n in "pct"}
        root = draw(size=(4, 4))
        self.matrix = jnp.array(0.3 * root @ root.T + np.eye(4))
        self.t = jnp.array(draw(size=4))

    def cost_c(self, c, p, t):
        pull = self.cross["cp"] @ p + self.cross["ct"] @ t + self.linear["c"]
        return 0.5 * c @ self.matrix @ c + 0.05 * jnp.sum(c**4) - c @ pull

    def cost_p(self, p, c, t):
        own = 0.5 * jnp.sum((c - 1.0) ** 2) + jnp.sum(p**2)
        return own - p @ (self.cross["pt"] @ t + self.linear["p"])

    def cost_t(self, t, p, c):
        return jnp.sum((c - self.linear["t"]) ** 2) + jnp.sum(jnp.sin(p)) + 0.1 * t @ t

    def solve_c(self, p, t):
        step = lambda c, _: (
            self.lowest(c - 0.2 * jax.grad(self.cost_c)(c, p, t)),
            None,
        )
        return jax.lax.scan(step, self.lowest(jnp.ones(4) / 4), None, length=150)[0]

    def solve_p(self, t):
        total = jax.grad(lambda p: self.cost_p(p, self.solve_c(p, t), t))
        step = lambda p, _: (self.middle(p - 0.2 * total(p)), None)
        return jax.lax.scan(step, self.middle(jnp.ones(4) / 4), None, length=150)[0]

    @functools.partial(jax.jit, static_argnums=0)
    def solve(self, t):
        p = self.solve_p(t)
        return p, self.solve_c(p, t)

    def differences(self):
        e = 1e-3
        shifts = e * jnp.concatenate([k * jnp.eye(4) for k in (1.0, -1.0, 2.0, -2.0)])

        def value(t):
            p, c = self.solve(t)
            return self.cost_t(t, p, c)

        up, down, up2, down2 = jnp.split(jax.vmap(value)(self.t[None] + shifts), 4)
        return (8 * (up - down) - (up2 - down2)) / (12 * e)

    def engine(self, method=None):
        p, c = self.solve(self.t)

        def problem(name, params, cost, reads, project=None):
            def loss_fn(params, batch, ctx):
                return cost(params, *(ctx[n].params for n in reads))

            return mlox.Problem.create(
                name=name,
                params=params,
                tx=optax.sgd(0.0),
                loss_fn=loss_fn,
                project=project,
                method=method,
            )

        problems = [
            problem("t", self.t, self.cost_t, "pc"),
            problem("p", p, self.cost_p, "ct", self.middle),
            problem("c", c, self.cost_c, "pt", self.lowest),
        ]
        u2l = {"t": ["p", "c"], "p": ["c"]}
        return mlox.Engine(problems, u2l, {"c": ["p", "t"], "p": ["t"]})


FREE = lambda v: v
TOWERS = {
    "box over nothing": (lambda v: jnp.clip(v, -0.4, 0.4), None),
    "ball over nothing": (lambda v: projections.projection_l2_ball(v, 0.6), None),
    "nothing over box": (None, lambda v: jnp.clip(v, -0.2, 0.2)),
    "box over simplex": (
        lambda v: jnp.clip(v, -0.4, 0.4),
        projections.projection_simplex,
    ),
    "ball over box": (
        lambda v: projections.projection_l2_ball(v, 0.6),
        lambda v: jnp.clip(v, -0.2, 0.2),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_levels_of_a_tower_have_constraints(name):
    tower = Tower(*(project or FREE for project in TOWERS[name]))
    engine = tower.engine(mlox.Implicit(mlox.MINRES(iterations=100, tolerance=1e-14)))
    none = dict.fromkeys("tpc")
    found = jax.jit(lambda state: engine.hypergradient(state, none, "t")[1])
    assert error(found(engine.init()), tower.differences()) < 1e-8


@pytest.mark.slow
def test_engine_warns_of_a_ball_inside_a_tower():
    tower = Tower(FREE, lambda v: projections.projection_l2_ball(v, 0.4))
    with pytest.warns(UserWarning, match=r"'c' has project= onto a curved set.*'p'"):
        tower.engine()
