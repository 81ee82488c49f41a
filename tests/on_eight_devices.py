"""Tests that need eight devices: `test_sharding.py` runs them in a process of its own.

By hand: XLA_FLAGS=--xla_force_host_platform_device_count=8 pytest -n0 <this file>
"""

import functools
import importlib
import itertools
import pathlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import mlox
import mlox.flax
from mlox._run import dispatch as _dispatch
from mlox._run.nonfinite import Policy
from mlox._sharding.layout import layout_of

from .sharded import (
    BATCH,
    METHODS,
    SIZE,
    assert_close,
    make_data,
    make_engine,
    select_arrays,
    stack_cycle,
)

P = PartitionSpec

RULES = {
    "replicated": "replicated",
    "fsdp": "fsdp",
    "table": [("fit/w", P("data", "model")), ("penalty", P(None, "model"))],
}


def make_mesh(rules):
    devices = np.array(jax.devices())
    if isinstance(rules, str):
        return Mesh(devices, ("data",))
    return Mesh(devices.reshape(4, 2), ("data", "model"))


@functools.cache
def run_on_one_device(method, levels):
    """Run two cycles on one device."""
    engine = make_engine(METHODS[method], levels)
    state, step, metrics = engine.init(), jax.jit(engine.step), {}
    for cycle in range(2):
        state, metrics = step(state, stack_cycle(engine, cycle))
    return jax.device_get((select_arrays(state), metrics))


def assert_placed_like(state, expected):
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(state),
        jax.tree.leaves(expected),
        strict=True,
    )
    for (path, found), like in pairs:
        same = found.sharding.is_equivalent_to(like.sharding, found.ndim)
        assert same, (jax.tree_util.keystr(path), found.sharding, like.sharding)


QUICK = [("cg", 2, rules) for rules in RULES]
QUICK += [("unrolled", 2, "fsdp"), ("sama", 2, "fsdp")]
SLOW = [(method, 3, "fsdp") for method in METHODS if method != "warm"]
SLOW += [case for case in itertools.product(METHODS, [2], RULES) if case not in QUICK]
SLOW += [("unrolled", 3, "table"), ("cg", 3, "table"), ("cg", 3, "replicated")]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.mark.parametrize(("method", "levels", "rules"), CASES)
def test_step_returns_the_numbers_of_one_device(method, levels, rules):
    engine, rules = make_engine(METHODS[method], levels), RULES[rules]
    mesh = make_mesh(rules)
    placed = state = mlox.shard(engine, engine.init(), mesh, rules)
    step = jax.jit(engine.step)
    if not isinstance(rules, str):  # XLA would split what is whole, too
        step = engine.compile(donate=False, like=state)
    cached, metrics = step._cache_size(), {}
    for cycle in range(2):
        batches = mlox.shard_batches(engine, stack_cycle(engine, cycle), mesh)
        state, metrics = step(state, batches)
    assert_close(
        (select_arrays(state), metrics), run_on_one_device(method, levels), 1e-10
    )
    assert_placed_like(state, placed)
    assert step._cache_size() == cached + 1


def test_step_returns_the_numbers_of_one_device_with_a_dense_solver():
    """Of 72 unknowns: `Dense` is for few."""
    engine = make_engine(mlox.Implicit(mlox.Dense()), size=8)
    mesh, batches = make_mesh(RULES["table"]), stack_cycle(engine, 0, size=8)
    expected = jax.device_get(engine.compile()(engine.init(), batches))
    state = mlox.shard(engine, engine.init(), mesh, RULES["table"])
    batches = mlox.shard_batches(engine, batches, mesh)
    found = engine.compile(like=state)(state, batches)
    assert_close(select_arrays(found[0]), select_arrays(expected[0]), 1e-10)


@pytest.mark.parametrize(
    ("rules", "at_once"),
    [
        ("replicated", None),
        ("fsdp", None),
        ("fsdp", 8),
        ("fsdp", 4),  # fewer than devices
        ([("fit", P("data"))], None),
    ],
)
def test_shard_splits_tasks_like_examples(rules, at_once):
    def fit_loss(params, batch, ctx):
        inputs, outputs = batch
        near = 0.1 * jnp.sum((params - ctx.start.params) ** 2)
        return jnp.mean((inputs @ params - outputs) ** 2) + near

    def start_loss(params, batch, ctx):
        inputs, outputs = batch
        errors = jnp.einsum("tni,ti->tn", inputs, ctx.fit.params) - outputs
        return jnp.mean(errors**2) + 1e-3 * jnp.sum(params**2)

    start = mlox.Problem.create(
        name="start", params=jnp.zeros(4), tx=optax.adam(0.1), loss_fn=start_loss
    )
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.zeros(4),
        tx=optax.adam(0.1),
        loss_fn=fit_loss,
        tasks=16,
        tasks_at_once=at_once,
        method=METHODS["warm"],
    )
    edges = {"u2l": {"start": ["fit"]}, "l2u": {"fit": ["start"]}}
    engine = mlox.Engine([start, fit], **edges)
    draw = np.random.default_rng(0).normal
    series = {
        name: [(draw(size=(16, 3, 4)), draw(size=(16, 3))) for _ in range(2)]
        for name in ("start", "fit")
    }
    options = {"train_iters": 3, "loggers": ()}
    expected, _ = engine.run(engine.init(), series, **options)
    state = mlox.shard(engine, engine.init(), make_mesh("fsdp"), rules)
    found, _ = engine.run(state, series, **options)
    assert_close(select_arrays(found), jax.device_get(select_arrays(expected)), 1e-10)
    assert_placed_like(found, state)
    assert state["fit"].params.sharding.spec == P("data")
    assert found["start"].memory["fit"].params["fit"].sharding.spec == P("data")


@pytest.mark.parametrize("tasks", [None, 8])
def test_an_upper_steers_an_optimizer(tasks):
    def fit_loss(params, batch, ctx):
        return jnp.mean((batch @ params - 1) ** 2)

    def rates_loss(params, batch, ctx):
        return jnp.mean((batch @ jnp.atleast_2d(ctx.fit.params).T - 1) ** 2)

    rates = mlox.Problem.create(
        name="rates", params=jnp.full(2, 0.1), tx=optax.sgd(0.1), loss_fn=rates_loss
    )
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.ones(4),
        tx=optax.inject_hyperparams(optax.sgd)(1.0),
        loss_fn=fit_loss,
        tasks=tasks,
        unroll_steps=2,
        method=mlox.Unrolled(),
        hyperparams=lambda ctx: {"learning_rate": ctx.rates.params[ctx.inner_step]},
    )
    engine = mlox.Engine([rates, fit], {"rates": ["fit"]}, {"fit": ["rates"]})
    x = np.random.default_rng(0).normal(size=(16, 4))
    shape = (2, *(() if tasks is None else (tasks,)), *x.shape)
    batches = {"rates": x[None], "fit": np.broadcast_to(x, shape)}
    expected = engine.compile(donate=False)(engine.init(), batches)[0]
    mesh = make_mesh("replicated")
    state = mlox.shard(engine, engine.init(), mesh)
    batches = mlox.shard_batches(engine, batches, mesh)
    found = engine.compile(donate=False, like=state)(state, batches)[0]
    assert_close(select_arrays(found), jax.device_get(select_arrays(expected)), 1e-10)
    assert_placed_like(found, state)


@pytest.mark.parametrize("rules", ["fsdp", RULES["table"]])
def test_memory_of_an_answer_is_split_like_its_parameters(rules):
    engine = make_engine(METHODS["warm"])
    state = mlox.shard(engine, engine.init(), make_mesh(rules), rules)
    found = state["penalty"].memory["fit"].params["fit"]
    assert_placed_like(found, state["fit"].params)
    assert found["w"].sharding.spec != P()


def assert_same_run(rules, tolerance, dtype, **options):
    """Run with and without a mesh, and return the state with one."""
    engine = make_engine(METHODS["cg"], dtype=dtype)
    mesh = make_mesh(rules)
    options = {"train_iters": 5, "log_every": 2, "loggers": (), **options}
    state = mlox.shard(engine, engine.init(), mesh, rules)
    found, history = engine.run(state, make_data(dtype), **options)
    expected, expected_history = engine.run(engine.init(), make_data(dtype), **options)
    assert_close(
        select_arrays(found), jax.device_get(select_arrays(expected)), tolerance
    )
    assert_close(history, expected_history, tolerance)
    assert_placed_like(found, state)
    return found


def test_run_returns_the_numbers_of_one_device_in_single_precision():
    assert_same_run("fsdp", 1e-5, "float32")


def test_run_compiles_each_length_of_dispatch_once():
    _dispatch.compile_cycles.cache_clear()
    options = {"cycles_per_dispatch": 2, "donate": True, "on_nonfinite": "skip"}
    assert_same_run(RULES["table"], 1e-10, "float64", **options)
    engine = make_engine(METHODS["cg"], dtype="float64")
    mesh = make_mesh(RULES["table"])
    layout = layout_of(mlox.shard(engine, engine.init(), mesh, RULES["table"]))
    for count in (2, 1):
        program = _dispatch.compile_cycles(
            engine.traced, count, True, Policy.SKIP, layout
        )
        assert program._cache_size() == 1
    assert (
        _dispatch.compile_cycles.cache_info().misses == 4
    )  # with the mesh, and without


@pytest.mark.slow
def test_confirmation_returns_the_numbers_of_one_device():
    engine = make_engine(METHODS["cg"])
    batches = stack_cycle(engine, 0)
    state = mlox.shard(engine, engine.init(), make_mesh("fsdp"), "fsdp")
    found, expected = (
        _dispatch.compile_confirmation(engine.traced, "penalty", 1, layout_of(x))(
            x, batches
        )
        for x in (state, engine.init())
    )
    assert "penalty/fit/distance" in found
    assert all(x.is_fully_replicated for x in found.values())
    assert_close(found, jax.device_get(expected), 1e-8)


def test_run_returns_metrics_of_examples_as_whole_arrays():
    engine = make_engine(METHODS["detached"])
    state = mlox.shard(engine, engine.init(), make_mesh("fsdp"), "fsdp")
    _, history = engine.run(state, make_data(), train_iters=1, loggers=())
    assert history["fit/errors"].shape == (1, BATCH)


def test_shard_divides_memory_by_the_number_of_devices():
    engine = make_engine(METHODS["cg"])
    placed = mlox.shard(engine, engine.init(), make_mesh("fsdp"), "fsdp")

    def bytes_on_a_device(state):
        leaves = jax.tree.leaves(select_arrays(state))
        return sum(x.addressable_shards[0].data.nbytes for x in leaves)

    whole = bytes_on_a_device(engine.init())
    small = 3 * SIZE * 8 + 3 * 4  # biases with their moments, counters
    assert bytes_on_a_device(placed) == (whole - small) / 8 + small


def test_shard_batches_gives_each_device_its_part():
    engine = make_engine(METHODS["cg"])
    mesh = make_mesh("fsdp")
    batches = mlox.shard_batches(engine, stack_cycle(engine, 0), mesh)
    inputs = batches["fit"][0]
    assert inputs.shape == (2, BATCH, SIZE)
    assert {s.data.shape for s in inputs.addressable_shards} == {(2, BATCH // 8, SIZE)}
    np.testing.assert_array_equal(inputs, stack_cycle(engine, 0)["fit"][0])


def test_shard_batches_replicates_a_leaf_without_examples():
    problem = mlox.Problem.create(
        name="x",
        params=jnp.ones(()),
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: batch["rate"] * params**2,
        unroll_steps=1,
    )
    engine = mlox.Engine([problem])
    mesh = make_mesh("fsdp")
    batches = mlox.shard_batches(engine, {"x": {"rate": np.ones(1)}}, mesh)
    assert batches["x"]["rate"].sharding.is_fully_replicated


def test_run_accepts_a_mesh_with_explicit_axes():
    engine = make_engine(METHODS["detached"])
    mesh = jax.make_mesh((8,), ("data",))
    assert mesh.axis_types != make_mesh("fsdp").axis_types
    state = mlox.shard(engine, engine.init(), mesh, "fsdp")
    engine.run(state, make_data(), train_iters=1, loggers=())


def test_shard_keeps_a_state_that_was_made_in_place():
    mesh = make_mesh("fsdp")
    sharding = NamedSharding(mesh, P("data"))
    params = jax.jit(lambda: jnp.zeros((SIZE, SIZE)), out_shardings=sharding)()
    problem = mlox.Problem.create(
        name="fit",
        params=params,
        tx=optax.adam(0.1),
        loss_fn=lambda params, batch, ctx: jnp.sum((params - 1) ** 2),
    )
    engine = mlox.Engine([problem])
    state = engine.init()
    for array in (state["fit"].params, state["fit"].opt_state[0].mu):
        assert array.addressable_shards[0].data.shape == (SIZE // 8, SIZE)
    placed = mlox.shard(engine, state, mesh, "fsdp")
    assert_placed_like(placed["fit"].params, params)


def test_compile_keeps_the_layout_of_like():
    """A memory of the last batch, whole on every device."""

    def loss_fn(params, batch, ctx):
        loss = jnp.mean((params - batch - ctx.model_state) ** 2)
        return {"loss": loss, "model_state": batch}

    problem = mlox.Problem.create(
        name="x",
        params=jnp.ones(()),
        tx=optax.sgd(0.1),
        loss_fn=loss_fn,
        model_state=jnp.zeros(BATCH),
    )
    engine = mlox.Engine([problem])
    mesh = make_mesh("replicated")
    state = mlox.shard(engine, engine.init(), mesh)
    batches = mlox.shard_batches(engine, {"x": np.ones((1, BATCH))}, mesh)
    moved, _ = jax.jit(engine.step)(state, batches)
    assert not moved["x"].model_state.sharding.is_fully_replicated
    kept, _ = engine.compile(donate=False, like=state)(state, batches)
    assert_placed_like(kept, state)


def test_restore_reads_a_checkpoint_of_eight_devices_on_any_number(tmp_path):
    engine = make_engine(METHODS["cg"])
    options = {"log_every": 2, "loggers": (), "checkpoint": mlox.Checkpoint(tmp_path)}
    state = mlox.shard(engine, engine.init(), make_mesh("fsdp"), "fsdp")
    saved, _ = engine.run(state, make_data(), train_iters=4, **options)
    like = mlox.shard(engine, engine.init(), make_mesh("fsdp"), "fsdp")
    few = Mesh(np.array(jax.devices()[:2]), ("data",))
    for template in (
        engine.init(),
        like,
        mlox.shard(engine, engine.init(), few, "fsdp"),
        mlox.shard(engine, engine.init(), make_mesh([]), RULES["table"]),
    ):
        found = mlox.restore(tmp_path, template)
        assert_placed_like(found, template)
        chex.assert_trees_all_equal(select_arrays(found), select_arrays(saved))
    expected, _ = engine.run(engine.init(), make_data(), train_iters=6, loggers=())
    table = mlox.shard(engine, engine.init(), make_mesh([]), RULES["table"])
    found, _ = engine.run(table, make_data(), train_iters=6, resume=True, **options)
    assert_close(select_arrays(found), jax.device_get(select_arrays(expected)), 1e-10)
    assert_placed_like(found, table)


@pytest.fixture
def job(monkeypatch):
    """Return the job of the benchmark of many devices, in single precision."""
    folder = pathlib.Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield importlib.import_module("_sharded")


# XLA's CPU compiler sums the two terms of a product with a Hessian one by one: those of
# layers after the first are twice as dear.
PRODUCTS = {"FiniteDifference": 0, "CG(3)": 3, "Unrolled": 5}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_gradient_or_product_is_summed_over_devices_once(job, name):
    mesh = make_mesh("fsdp")
    case, count = job.CASES[name], PRODUCTS[name]

    def units(change):
        engine = job.engine_of(case.method, change)
        program = job.compiled(engine, "replicated", mesh, 512 * 8)
        moved = job.communication(program, 8)["collectives"]["all-reduce"]
        return moved[0] / case.evaluations

    # The sums of the upper's own gradient, and of scalars, are a thousandth.
    assert 1 <= units(job.mean_of_means(mesh)) < 1.01
    assert 1 <= units(job.as_it_is) < 1.01 + 0.41 * count / case.evaluations


def test_a_mean_of_means_has_the_derivatives_of_a_mean(job):
    mesh = make_mesh("fsdp")
    params = job.layers((8, 8, 4))
    draw = np.random.default_rng(1)
    batch = jnp.float32(draw.normal(size=(32, 8))), draw.integers(4, size=32)
    along = jax.tree.map(jnp.ones_like, params)

    def derivatives(change):
        slope = jax.grad(lambda params: change(job.plain)(params, batch))
        return jax.jvp(slope, (params,), (along,))

    found, expected = (
        jax.jit(derivatives, static_argnums=0)(change)
        for change in (job.mean_of_means(mesh), job.as_it_is)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


def test_copies_of_evolution_strategies_are_split_like_tasks():
    x = mlox.Problem.create(
        name="x",
        params=jnp.ones(3),
        tx=optax.adam(0.1),
        loss_fn=lambda params, batch, ctx: jnp.round(ctx.y.params**2 * 64).sum() / 64,
    )
    y = mlox.Problem.create(
        name="y",
        params=jnp.zeros(3),
        tx=optax.adam(0.3),
        loss_fn=lambda params, batch, ctx: (
            ((params - ctx.x.params) ** 2).sum() * batch.mean()
        ),
        reset=lambda params, ctx: jnp.zeros(3),
        unroll_steps=2,
        rng=0,
    )
    options = {"pairs": 8, "sigma": 0.2, "estimator": mlox.PES(windows=3)}
    graph = mlox.evolve([x, y], {"x": ["y"]}, {"y": ["x"]}, lower="y", **options)
    engine = mlox.Engine(*graph)
    mesh = make_mesh("replicated")
    batches = {"x": None, "y": np.ones((2, BATCH))}  # for all copies
    expected, found = engine.init(), mlox.shard(engine, engine.init(), mesh)
    noise = found["y"].model_state.noise.total
    assert noise.sharding.spec == P("data")
    split = mlox.shard_batches(engine, batches, mesh)
    for _ in range(4):
        expected, _ = engine.compile(donate=False)(expected, batches)
        found, _ = engine.compile(donate=False, like=found)(found, split)
    assert found["y"].model_state.noise.total.sharding.spec == P("data")
    assert_close(select_arrays(found), jax.device_get(select_arrays(expected)), 1e-10)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = nn.initializers.lecun_normal()
        up = nn.with_logical_partitioning(kernel, ("embed", "hidden"))
        down = nn.with_logical_partitioning(kernel, ("hidden", "embed"))
        parts = {"use_bias": False, "param_dtype": jnp.float64}
        x = nn.Dense(SIZE, kernel_init=up, **parts)(x)
        return nn.Dense(SIZE, kernel_init=down, **parts)(nn.tanh(x))


def make_flax_engine():
    net = Net()

    def loss_fn(params, batch, ctx):
        inputs, outputs = batch
        return jnp.mean((net.apply({"params": params}, inputs) - outputs) ** 2)

    params = net.init(jax.random.key(0), jnp.ones((1, SIZE)))["params"]
    problem = mlox.Problem.create(
        name="net", params=params, tx=optax.adam(0.1), loss_fn=loss_fn
    )
    return mlox.Engine([problem])


def test_shard_splits_by_logical_names_of_flax():
    engine = make_flax_engine()
    rules = (("hidden", "model"), ("embed", None))
    mesh = make_mesh(rules)
    state = mlox.shard(engine, engine.init(), mesh, rules)
    for tree in (state["net"].params, state["net"].opt_state[0].mu):
        assert tree["Dense_0"]["kernel"].value.sharding.spec == P(None, "model")
        assert tree["Dense_1"]["kernel"].value.sharding.spec == P("model", None)
    batches = {"net": make_data()["fit"]}
    options = {"train_iters": 3, "loggers": ()}
    found, _ = engine.run(state, batches, **options)
    expected, _ = engine.run(engine.init(), batches, **options)
    assert_close(select_arrays(found), jax.device_get(select_arrays(expected)), 1e-10)
    assert_placed_like(found, state)


def test_shard_splits_a_problem_of_from_linen_by_logical_names():
    """What `mlox.flax` makes keeps the names, too."""
    net = Net()
    problem = mlox.flax.from_linen(
        net,
        net.init(jax.random.key(0), jnp.ones((1, SIZE))),
        name="net",
        tx=optax.adam(0.1),
        loss_fn=lambda params, batch, ctx: jnp.mean(
            net.apply({"params": params}, batch) ** 2
        ),
    )
    engine = mlox.Engine([problem])
    rules = (("hidden", "model"), ("embed", "data"))
    state = mlox.shard(engine, engine.init(), make_mesh(rules), rules)
    kernel = state["net"].params["Dense_0"]["kernel"].value
    assert kernel.sharding.spec == P("data", "model")


def test_shard_splits_the_tasks_of_a_problem_with_logical_names():
    """Each axis by its own name, beside the axis of tasks."""
    net = Net()
    problem = mlox.Problem.create(
        name="net",
        params=net.init(jax.random.key(0), jnp.ones((1, SIZE)))["params"],
        tx=optax.adam(0.1),
        loss_fn=lambda params, batch, ctx: jnp.mean(
            net.apply({"params": params}, batch) ** 2
        ),
        tasks=4,
    )
    engine = mlox.Engine([problem])
    rules = (("hidden", "model"), ("embed", None))
    for more, spec in (
        ((), P(None, None, "model")),
        ((("tasks", "data"),), P("data", None, "model")),
    ):
        mesh = make_mesh((*rules, *more))
        state = mlox.shard(engine, engine.init(), mesh, (*rules, *more))
        for tree in (state["net"].params, state["net"].opt_state[0].mu):
            assert tree["Dense_0"]["kernel"].value.sharding.spec == spec


def test_shard_replicates_moments_that_are_sums_over_axes():
    problem = mlox.Problem.create(
        name="x",
        params={"w": jnp.ones((256, 256))},
        tx=optax.adafactor(0.1),
        loss_fn=lambda params, batch, ctx: jnp.sum(params["w"] ** 2),
    )
    engine = mlox.Engine([problem])
    table = [("w$", P("data"))]
    state = mlox.shard(engine, engine.init(), make_mesh("fsdp"), table)["x"]
    shardings = {x.shape: x.sharding.spec for x in jax.tree.leaves(state.opt_state)}
    assert shardings[(256,)] == P()
    assert state.params["w"].sharding.spec == P("data")


BAD_RULES = {
    "another word": ("zero", ValueError, "rules are 'zero'; expected 'replicated'"),
    "nothing": ([], ValueError, r"rules are \[\]; expected"),
    "no pair": (["fit"], TypeError, "the rules hold 'fit'; expected"),
    "two kinds": ([("w", P()), ("b", "data")], TypeError, "mix patterns with"),
    "no expression": ([("(", P())], ValueError, r"'\(' is not a regular expression"),
    "no leaf": ([("fit/kernel", P())], ValueError, "'fit/kernel' matches no leaf"),
    "no axis": ([("fit/w", P("up"))], ValueError, "mesh has no axis 'up', only"),
    "too many": (
        [("fit/w", P(None, None, "data"))],
        ValueError,
        "problem 'fit', leaf 'fit/w' of shape .32, 32. .* it has 2 axes",
    ),
    "twice": ([("fit/w", P("data", "data"))], ValueError, "'data' is there twice"),
    "uneven": ([("fit/b", P("data"))], ValueError, "axis 0 of 1 cannot be split"),
    "no names": ([("embed", "data")], ValueError, "no leaf has names"),
}


@pytest.mark.parametrize("case", BAD_RULES)
def test_shard_raises_for_bad_rules(case):
    rules, kind, message = BAD_RULES[case]
    engine = make_engine(METHODS["cg"])
    with pytest.raises(kind, match=message):
        mlox.shard(engine, engine.init(), make_mesh("fsdp"), rules)


def test_shard_raises_for_a_name_without_a_rule():
    engine = make_flax_engine()
    message = r"logical name 'embed' of 'net/Dense_0/kernel.*\('embed', None\)"
    with pytest.raises(ValueError, match=message):
        mlox.shard(engine, engine.init(), make_mesh([]), (("hidden", "model"),))


def test_shard_raises_for_a_list_of_devices():
    engine = make_engine(METHODS["cg"])
    with pytest.raises(TypeError, match=r"mesh is a list; expected a jax.*Mesh"):
        mlox.shard(engine, engine.init(), jax.devices())


def test_shard_raises_for_a_state_of_another_engine():
    engine = make_engine(METHODS["cg"])
    with pytest.raises(ValueError, match=r"state.keys\(\) is \['fit'\]"):
        mlox.shard(engine, {"fit": engine.init()["fit"]}, make_mesh("fsdp"))


UNEVEN = "problem 'fit': leaf .* has 12 examples; expected a multiple of 8, .* e.g. 16"


def test_run_and_shard_batches_raise_for_a_batch_that_cannot_be_split():
    engine = make_engine(METHODS["cg"])
    short = {
        name: [jax.tree.map(lambda x: x[:12], batch) for batch in batches]
        for name, batches in make_data().items()
    }
    state = mlox.shard(engine, engine.init(), make_mesh("fsdp"), "fsdp")
    with pytest.raises(ValueError, match=UNEVEN):  # nothing has run
        engine.run(state, short, train_iters=1, loggers=())
    batches = engine.stack({name: iter(series) for name, series in short.items()})
    with pytest.raises(ValueError, match=UNEVEN):
        mlox.shard_batches(engine, batches, make_mesh("fsdp"))


def test_shard_batches_raises_for_batches_of_another_schedule():
    engine = make_engine(METHODS["cg"])
    batches = {**stack_cycle(engine, 0), "penalty": None, "fit": np.ones((3, 8))}
    with pytest.raises(ValueError, match=r"expected \[2, \.\.\.\]"):
        mlox.shard_batches(engine, batches, make_mesh("fsdp"))
