"""Methods with memory: warm starts and SOBA, and what the engine does with a memory."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

H = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 1.5]])
B = np.array([[1.0, 0.5], [-0.4, 0.8], [0.3, -1.0]])
TARGET = np.array([1.0, -2.0, 0.5])
WARM = mlox.Implicit(mlox.Richardson(iterations=1, step=0.3), warm_start=True)
SOBA = mlox.SOBA(step=0.3)
BOTH = pytest.mark.parametrize(
    "method", [SOBA, pytest.param(WARM, marks=pytest.mark.slow)]
)


def fit_loss(y, batch, ctx):
    shift = 0.0 if batch is None else batch
    return 0.5 * y @ (H @ y) - y @ (B @ ctx.up.params) + shift * jnp.sum(y)


def up_loss(x, batch, ctx):
    return 0.5 * jnp.sum((ctx.fit.params - TARGET) ** 2) + 0.1 * jnp.sum(x**2)


def make_pair(method, rates=(0.2, 0.1), fit=None, up=None, **options):
    lower = mlox.Problem.create(
        name="fit",
        **{
            "params": jnp.zeros(3),
            "tx": optax.sgd(rates[0]),
            "loss_fn": fit_loss,
            "method": method,
            **(fit or {}),
        },
    )
    upper = mlox.Problem.create(
        name="up",
        **{
            "params": jnp.ones(2),
            "tx": optax.sgd(rates[1]),
            "loss_fn": up_loss,
            **(up or {}),
        },
    )
    return mlox.Engine([upper, lower], {"up": ["fit"]}, {"fit": ["up"]}, **options)


@functools.cache
def pair(method, rates=(0.2, 0.1)):
    return make_pair(method, rates)


NONE = {"up": None, "fit": None}


@functools.partial(jax.jit, static_argnums=(0, 2))
def scan(engine, state, cycles):
    step = lambda state, _: engine.step(state, dict.fromkeys(engine.names))
    return jax.lax.scan(step, state, length=cycles)


def kept(state, upper="up", lower="fit"):
    return state[upper].memory[lower].params[lower]


# Laws


def test_warm_runs_of_one_iteration_are_one_run_of_all_bit_for_bit():
    runs, frozen = 7, (1e-300, 1e-300)  # updates below the last bit
    many, _ = scan(pair(WARM, frozen), pair(WARM, frozen).init(), runs)
    once = dataclasses.replace(WARM, solver=mlox.Richardson(runs, 0.3))
    one, _ = scan(pair(once, frozen), pair(once, frozen).init(), 1)
    np.testing.assert_array_equal(kept(many), kept(one))
    assert np.abs(kept(one)).max() > 0.1


@pytest.mark.slow
def test_residual_of_warm_cg_does_not_increase_on_a_frozen_problem():
    engine = pair(mlox.Implicit(mlox.CG(iterations=1), warm_start=True), (1e-300,) * 2)
    _, metrics = scan(engine, engine.init(), 12)
    residuals = np.ravel(metrics["up/fit/residual"])
    assert (np.diff(residuals) <= 0).all()
    assert residuals[-1] < 1e-2 * residuals[0]


@BOTH
def test_iterates_follow_the_recursion_of_block_matrices(method):
    """The lower moves first; SOBA uses the old multiplier, a warm start the new one."""
    a, b, c = 0.2, 0.1, 0.3
    engine = pair(method, (a, b))
    state, _ = scan(engine, engine.init(), 25)
    y, lam, x = np.zeros(3), np.zeros(3), np.ones(2)
    for _ in range(25):
        y = y - a * (H @ y - B @ x)
        new = lam - c * (H @ lam - (y - TARGET))
        used = lam if method == SOBA else new
        # C_yx = -B, and the upper's gradient is F_x - C_xy lambda.
        x = x - b * (0.2 * x + B.T @ used)
        lam = new
    np.testing.assert_allclose(state["fit"].params, y, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(state["up"].params, x, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(kept(state), lam, rtol=1e-12, atol=1e-14)


@BOTH
def test_iterates_rest_at_the_exact_optimum(method):
    engine = pair(method)
    state, _ = scan(engine, engine.init(), 2000)
    inverse = np.linalg.solve(H, B)
    x = np.linalg.solve(inverse.T @ inverse + 0.2 * np.eye(2), inverse.T @ TARGET)
    np.testing.assert_allclose(state["up"].params, x, rtol=1e-10)
    np.testing.assert_allclose(state["fit"].params, inverse @ x, rtol=1e-10)
    residual = H @ kept(state) - (inverse @ x - TARGET)
    assert np.abs(residual).max() < 1e-10


def test_hypergradient_uses_the_memory_and_leaves_it():
    engine = pair(SOBA)
    state, _ = scan(engine, engine.init(), 5)
    before = jax.tree.map(np.array, state)
    _, found = engine.hypergradient(state, NONE, "up")
    x = state["up"].params
    np.testing.assert_allclose(found, 0.2 * x + B.T @ kept(state), rtol=1e-12)
    chex.assert_trees_all_equal(before, state)


@pytest.mark.slow
@pytest.mark.parametrize("method", [SOBA, mlox.Implicit(warm_start=True)])
def test_hypergradient_is_differentiated_as_one_that_is_solved(method):
    engine = pair(method)
    state, _ = scan(engine, engine.init(), 3)
    inverse = np.linalg.solve(H, B)

    def slope(x):
        moved = {**state, "up": state["up"].replace(params=x)}
        return engine.hypergradient(moved, NONE, "up")[1]

    for found in (jax.jacrev(slope), jax.jacfwd(slope)):
        np.testing.assert_allclose(
            found(state["up"].params),
            inverse.T @ inverse + 0.2 * np.eye(2),
            rtol=1e-10,
        )


@pytest.mark.slow
def test_memory_of_two_uppers_of_one_lower_is_two():
    def engine_of(targets):
        lower = mlox.Problem.create(
            name="fit",
            params=jnp.zeros(3),
            tx=optax.sgd(0.0),
            method=WARM,
            loss_fn=lambda y, batch, ctx: (
                0.5 * y @ (H @ y)
                - y
                @ sum(B @ ctx[name].params for name in ("a", "b") if name in targets)
            ),
        )
        uppers = [
            mlox.Problem.create(
                name=name,
                params=jnp.ones(2),
                tx=optax.sgd(0.0),
                loss_fn=lambda x, batch, ctx, t=t: (
                    0.5 * jnp.sum((ctx.fit.params - t * TARGET) ** 2)
                ),
            )
            for name, t in targets.items()
        ]
        return mlox.Engine(
            [*uppers, lower],
            {name: ["fit"] for name in targets},
            {"fit": list(targets)},
        )

    engine = engine_of({"a": 1.0, "b": -2.0})
    state, _ = scan(engine, engine.init(), 4)
    for name, target in {"a": 1.0, "b": -2.0}.items():
        alone = engine_of({name: target})
        expected, _ = scan(alone, alone.init(), 4)
        np.testing.assert_array_equal(kept(state, name), kept(expected, name))
    assert np.abs(kept(state, "a") - kept(state, "b")).max() > 0.1


# With everything else


def shifted(value, tasks=None):
    return {"up": None, "fit": jnp.full((1,) if tasks is None else (1, tasks), value)}


@pytest.mark.slow
@pytest.mark.parametrize("method", [WARM, SOBA])
def test_tasks_equal_separate_problems(method):
    shifts = jnp.array([0.3, -1.0, 2.0])
    resting = optax.sgd(0.0)
    engine = make_pair(
        method,
        fit={"tasks": 3},
        up={
            "tx": resting,
            "loss_fn": lambda x, batch, ctx: (
                0.5 * jnp.sum((ctx.fit.params - jnp.array([TARGET] * 3)) ** 2)
            ),
        },
    )
    alone = make_pair(method, up={"tx": resting})
    many, single = engine.init(), alone.init()
    assert kept(many).shape == (3, 3)
    for _ in range(3):
        many, _ = engine.step(many, {"up": None, "fit": shifts[None]})
    found = []
    for shift in shifts:
        state = single
        for _ in range(3):
            state, _ = alone.step(state, shifted(shift))
        found.append(kept(state))
    np.testing.assert_allclose(kept(many), np.stack(found), rtol=1e-13)


def test_memory_is_left_alone_where_a_step_waits():
    engine = make_pair(WARM, fit={"warmup_steps": 3})
    state, _ = scan(engine, engine.init(), 3)
    assert not np.any(kept(state))
    state, _ = scan(engine, state, 1)
    assert np.all(kept(state))


def test_memory_is_left_alone_where_a_cycle_is_skipped():
    engine = make_pair(WARM)
    data = [jnp.array(x) for x in (0.1, 0.2, np.nan, 0.3)]
    run = functools.partial(
        engine.run, loggers=(), progress=False, on_nonfinite="skip", log_every=1
    )
    state, _ = run(engine.init(), {"fit": data}, train_iters=4)
    used = [*data[:2], data[3]]
    expected, _ = run(engine.init(), {"fit": used}, train_iters=3)
    chex.assert_trees_all_equal(state["up"].memory, expected["up"].memory)


def test_nonfinite_memory_is_found():
    """A divergent solver makes numbers that are not finite before the upper does."""
    engine = make_pair(SOBA)
    before = engine.init()
    bad = jax.tree.map(lambda x: x * jnp.nan, before["up"].memory)
    after = {**before, "up": before["up"].replace(memory=bad)}
    found = engine.traced.find_nonfinite(before, after, {})
    assert {name: bool(x) for name, x in found.items()} == {"up": True, "fit": False}


@pytest.mark.slow
def test_memory_is_left_alone_where_a_scaled_loss_overflows():
    from flax.training.dynamic_scale import DynamicScale

    engine = make_pair(WARM, up={"loss_scale": DynamicScale(scale=2.0**20)})
    state, _ = engine.step(engine.init(), shifted(0.1))
    after, _ = engine.step(state, shifted(jnp.inf))
    chex.assert_trees_all_equal(after["up"].memory, state["up"].memory)
    assert np.any(kept(state))


def test_reset_of_a_lower_starts_its_memory_anew_and_warns():
    start = {"reset": lambda y, ctx: jnp.zeros(3), "unroll_steps": 2}
    with pytest.warns(UserWarning, match="'fit' has reset.*the memory of .* does noth"):
        engine = make_pair(WARM, (0.2, 0.0), fit=start)
    state, _ = scan(engine, engine.init(), 1)
    again, _ = scan(engine, state, 1)
    chex.assert_trees_all_equal(again["up"].memory, state["up"].memory)
    with pytest.raises(ValueError, match=r"SOBA.*needs an inner loop that goes on"):
        make_pair(SOBA, fit=start)


@pytest.mark.slow
def test_run_resumes_bit_for_bit(tmp_path):
    engine = make_pair(WARM)
    data = {"fit": [jnp.array(x) for x in np.linspace(-1, 1, 6)]}
    run = functools.partial(engine.run, loggers=(), progress=False, train_iters=6)
    whole, _ = run(engine.init(), data)
    folder = mlox.Checkpoint(tmp_path, every=3)
    run(engine.init(), data, train_iters=3, checkpoint=folder)
    resumed, _ = run(engine.init(), data, checkpoint=folder, resume=True)
    chex.assert_trees_all_equal(resumed, whole)
    chex.assert_trees_all_equal(mlox.restore(tmp_path, engine.init()), whole)


@pytest.mark.slow
def test_cycles_in_one_dispatch_are_those_of_many():
    engine = make_pair(SOBA)
    data = {"fit": [jnp.array(x) for x in np.linspace(-1, 1, 6)]}
    run = functools.partial(engine.run, loggers=(), progress=False, train_iters=6)
    one, _ = run(engine.init(), data)
    many, _ = run(engine.init(), data, cycles_per_dispatch=3)
    chex.assert_trees_all_close(one, many, rtol=1e-14)


@pytest.mark.slow
def test_vmap_over_seeds_is_a_loop_over_them():
    engine = pair(SOBA)

    def train(x):
        state = engine.init()
        state = {**state, "up": state["up"].replace(params=x)}
        return kept(scan(engine, state, 5)[0])

    starts = jnp.arange(6.0).reshape(3, 2)
    found = jax.vmap(train)(starts)
    expected = np.stack([train(x) for x in starts])
    np.testing.assert_allclose(found, expected, rtol=1e-13)


# Where there is no place for a memory


def chain(bottom, middle, steps=1, **options):
    def top_loss(p, batch, ctx):
        return (ctx.mid.params - 1.0) ** 2

    def mid_loss(p, batch, ctx):
        return (ctx.low.params - p * ctx.top.params) ** 2 + p**2

    def low_loss(p, batch, ctx):
        return (p - ctx.mid.params) ** 2

    parts = {"params": jnp.ones(()), "tx": optax.sgd(0.1)}
    top, mid, low = (
        mlox.Problem.create(name=name, loss_fn=loss, **{**parts, **others})
        for name, loss, others in (
            ("top", top_loss, {"tx": optax.sgd(0.0)}),
            ("mid", mid_loss, {"method": middle, "unroll_steps": steps}),
            ("low", low_loss, {"method": bottom, "params": jnp.array(0.5)}),
        )
    )
    return mlox.Engine(
        [top, mid, low],
        {"top": ["mid"], "mid": ["low"]},
        {"low": ["mid"], "mid": ["top"]},
        **options,
    )


@pytest.mark.parametrize(
    ("middle", "options"),
    [(mlox.Detached(), {}), (mlox.SAMA(), {}), (WARM, {"coupling": "direct"})],
)
@pytest.mark.slow
def test_memory_is_kept_where_nothing_above_differentiates_it(middle, options):
    engine = chain(WARM, middle, **options)
    state, _ = scan(engine, engine.init(), 2)
    assert np.all(kept(state, "mid", "low"))


@pytest.mark.slow
def test_roll_back_restores_the_memory_of_what_looked_ahead():
    """What the middle remembers after the window is that of one step, not of three."""
    ends = []
    for steps in (1, 3):
        engine = chain(WARM, mlox.Detached(), steps, roll_back=True)
        ends.append(kept(scan(engine, engine.init(), 1)[0], "mid", "low"))
    assert ends[0] == ends[1] != 0


def test_state_without_memory_is_told_how_to_get_one():
    engine = make_pair(WARM)
    by_hand = {problem.name: problem for problem in engine.problems}
    with pytest.raises(ValueError, match=r"'up': memory does not .*engine\.init"):
        engine.step(by_hand, NONE)
    old = make_pair(mlox.Implicit())
    state = old.init()
    state = {**state, "fit": state["fit"].replace(method=WARM)}
    with pytest.raises(ValueError, match="memory"):
        engine.step(state, NONE)
    again = mlox.Engine(list(state.values()), {"up": ["fit"]}, {"fit": ["up"]})
    again.step(again.init(), NONE)


# The contract


@dataclasses.dataclass(frozen=True)
class TwoValues:
    """A method as it was before there were memories."""

    def multiplier(self, answer, cotangent, guess):
        assert guess is None
        return cotangent, {}

    def pairing(self, cost, point, multiplier):
        return jax.jvp(cost, (point,), (multiplier,))[1]


@dataclasses.dataclass(frozen=True)
class Counts(TwoValues):
    """A method that counts the steps of an upper."""

    def start(self, point):
        return {"count": jnp.int32(0)}

    def multiplier(self, answer, cotangent, memory):
        return cotangent, {"count": memory["count"] + 1}, {}


def test_methods_of_two_values_have_no_memory():
    engine = make_pair(TwoValues())
    assert not isinstance(TwoValues(), mlox.MethodWithMemory)
    assert isinstance(mlox.Implicit(), mlox.MethodWithMemory)
    state, _ = scan(engine, engine.init(), 2)
    assert state["up"].memory is None


def test_memory_is_whatever_a_method_keeps():
    engine = make_pair(Counts())
    state, _ = scan(engine, engine.init(), 4)
    assert state["up"].memory == {"fit": {"count": 4}}


def test_program_without_memory_has_no_leaf_for_it():
    def names(engine):
        leaves = jax.tree_util.tree_leaves_with_path(engine.init())
        return " ".join(jax.tree_util.keystr(path) for path, _ in leaves)

    assert "memory" not in names(pair(mlox.Implicit()))
    assert "memory" in names(pair(WARM))


def test_explain_says_what_is_remembered():
    assert "remembers     fit" in pair(WARM).explain()
    assert "remembers" not in pair(mlox.Implicit()).explain()
    batches = dict.fromkeys(pair(WARM).names)
    assert "remembers     fit" in pair(WARM).explain(batches)
