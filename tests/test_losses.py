"""Accumulated and mixed-precision losses, and loss scaling: the same numbers."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale

import mlox
from mlox._problem.loss_scaling import scale_cotangent

EDGES = {"up": ["low"]}, {"low": ["up"]}
SGD = optax.sgd(0.2)
BATCH = jax.random.normal(jax.random.key(0), (2, 12, 3))
BATCHES = {"up": None, "low": BATCH}
METHODS = (
    mlox.Unrolled(),
    mlox.Implicit(mlox.CG(3)),
    mlox.Implicit(mlox.Neumann(3, 0.1)),
    mlox.Implicit(mlox.Dense()),
    mlox.FiniteDifference(),
    mlox.SAMA(),
)
every_method = pytest.mark.parametrize("method", METHODS, ids=repr)


def fit(params, batch, ctx):
    weight = jax.nn.sigmoid(batch @ ctx.up.params)
    loss = jnp.mean(weight * (batch @ params - 1) ** 2)
    return {"loss": loss, "largest": jnp.max(weight)}


def outer(params, batch, ctx):
    return jnp.sum((ctx.low.params - 1) ** 2) + jnp.sum(params**2)


def engine(loss_fn=fit, method=None, dtype=jnp.float64, roll_back=False, **parts):
    parts = {"tx": SGD, "unroll_steps": 2, **parts}
    up = mlox.Problem.create(
        name="up", params=jnp.full(3, 0.3, dtype), tx=SGD, loss_fn=outer
    )
    low = mlox.Problem.create(
        name="low",
        params=jnp.full(3, 0.1, dtype),
        loss_fn=loss_fn,
        method=method,
        **parts,
    )
    return mlox.Engine([up, low], *EDGES, roll_back=roll_back)


def hypergradient(made, dtype=jnp.float64):
    batches = {"up": None, "low": BATCH.astype(dtype)}
    found = jax.jit(lambda s, b: made.hypergradient(s, b, "up")[1])
    return found(made.init(), batches)


class TestAccumulated:
    @every_method
    def test_hypergradient_is_that_of_the_whole_batch(self, method):
        whole = hypergradient(engine(method=method))
        parts = hypergradient(engine(mlox.Accumulated(fit, 4), method))
        np.testing.assert_allclose(parts, whole, rtol=1e-8)

    def test_counts_steps_of_the_optimizer(self):
        schedule = optax.sgd(optax.piecewise_constant_schedule(1.0, {1: 0.0}))
        loss = lambda params, batch, ctx: -params.sum() + 0 * batch.sum()
        problem = mlox.Problem.create(
            name="x",
            params=jnp.zeros(1),
            tx=schedule,
            loss_fn=mlox.Accumulated(loss, 4),
        )
        alone = mlox.Engine([problem])
        data = {"x": [jnp.ones(8)]}
        state, history = alone.run(alone.init(), data, 3, log_every=1, loggers=())
        assert state["x"].params == 1.0, "the rate falls to 0 after one step, not four"
        assert state["x"].step == 3
        assert history["x/loss"].tolist() == [0.0, -1.0, -1.0]

    def test_averages_metrics_and_passes_the_state_from_part_to_part(self):
        def loss(params, batch, ctx):
            key = jax.random.key_data(ctx.rng)[-1].astype(float)
            kept = {"sum": ctx.model_state["sum"] + batch.sum()}
            return {"loss": params * 0.0, "key": key, "model_state": kept}

        problem = mlox.Problem.create(
            name="x",
            params=jnp.zeros(()),
            tx=SGD,
            rng=0,
            loss_fn=mlox.Accumulated(loss, 3),
            model_state={"sum": jnp.zeros(())},
        )
        alone = mlox.Engine([problem])
        state, metrics = alone.step(alone.init(), {"x": jnp.arange(6.0)[None]})
        assert state["x"].model_state["sum"] == 15.0
        key = jax.random.fold_in(jax.random.key(0), 0)
        keys = [
            jax.random.key_data(jax.random.fold_in(key, i))[-1].astype(float)
            for i in range(3)
        ]
        assert len(set(map(float, keys))) == 3
        np.testing.assert_allclose(metrics["x/key"][0], np.mean(keys))

    def test_needs_the_memory_of_one_part(self):
        def loss(params, batch, ctx):
            for _ in range(4):
                batch = jnp.tanh(batch @ params)
            return jnp.mean(batch**2)

        def temporaries(loss_fn):
            problem = mlox.Problem.create(
                name="x", params=jnp.eye(8), tx=SGD, loss_fn=loss_fn
            )
            alone = mlox.Engine([problem])
            batches = {"x": jnp.ones((1, 4096, 8))}
            compiled = alone.compile().lower(alone.init(), batches).compile()
            return compiled.memory_analysis().temp_size_in_bytes

        assert temporaries(mlox.Accumulated(loss, 16)) < temporaries(loss) / 4

    def test_raises_if_steps_do_not_divide_the_batch(self):
        made = engine(mlox.Accumulated(fit, 5))
        message = (
            "loss of 'low': Accumulated(steps=5) got a batch with a leaf of shape "
            "[12, 3]; expected a leading axis that 5 divides"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            made.step(made.init(), BATCHES)

    @pytest.mark.parametrize("steps", [0, 2.0, True])
    def test_raises_if_steps_is_not_a_count(self, steps):
        with pytest.raises(ValueError, match=r"Accumulated: steps is .*positive int"):
            mlox.Accumulated(fit, steps)

    @pytest.mark.parametrize("kind", [mlox.Accumulated, mlox.MixedPrecision])
    def test_raises_if_loss_fn_is_not_a_function(self, kind):
        with pytest.raises(
            TypeError, match=r": loss_fn is 3; expected a function \(par"
        ):
            kind(3, 2)

    def test_unrolls_convolutions_on_cpu(self):
        def loss(params, batch, ctx):
            image = batch[..., None]
            return jnp.mean(
                jax.lax.conv_general_dilated(
                    image, params, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
                )
            )

        ctx = mlox.Context("x", {}, None, 0, None)
        program = jax.make_jaxpr(lambda p, b: mlox.Accumulated(loss, 2)(p, b, ctx))(
            jnp.ones((3, 1, 1)), jnp.ones((4, 8))
        )
        (scan,) = (e for e in program.eqns if e.primitive.name == "scan")
        cpu = jax.default_backend() == "cpu"
        assert scan.params["unroll"] == (2 if cpu else 1)


class TestMixedPrecision:
    @every_method
    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_hypergradient_is_near_that_in_full_precision(self, method, dtype):
        full = hypergradient(engine(method=method, dtype=jnp.float32), jnp.float32)
        half = hypergradient(
            engine(mlox.MixedPrecision(fit, dtype), method, jnp.float32), jnp.float32
        )
        assert half.dtype == jnp.float32
        # Of a small difference of parameters, their rounding takes its part.
        loose = isinstance(method, mlox.FiniteDifference)
        limit = {jnp.float16: 0.1, jnp.bfloat16: 0.5}[dtype] if loose else 0.03
        assert jnp.linalg.norm(half - full) < limit * jnp.linalg.norm(full)

    def test_computes_in_its_dtype_and_keeps_float32(self):
        seen = []

        def loss(params, batch, ctx):
            seen.append([x.dtype for x in (params, batch[0], ctx.up.params)])
            kept = {"mean": (ctx.model_state["mean"] / 2).astype(jnp.bfloat16)}
            count = batch[1].sum().astype(params.dtype)
            loss = count * jnp.sum(params * batch[0] * ctx.up.params)
            return {"loss": loss, "model_state": kept}

        made = engine(
            mlox.MixedPrecision(loss),
            dtype=jnp.float32,
            tx=optax.adam(0.1),
            model_state={"mean": jnp.ones(2, jnp.float32)},
        )
        batches = {
            "up": None,
            "low": (jnp.ones((2, 3), jnp.float32), jnp.ones((2, 1), jnp.int32)),
        }
        state, metrics = made.step(made.init(), batches)
        assert {dtype for dtypes in seen for dtype in dtypes} == {
            jnp.dtype(jnp.bfloat16)
        }
        kinds = {x.dtype for x in jax.tree.leaves(state["low"].params)}
        kinds |= {x.dtype for x in jax.tree.leaves(state["low"].model_state)}
        assert kinds == {jnp.dtype("float32")}
        assert metrics["low/loss"].dtype == jnp.float32

    def test_computes_in_bfloat16_by_default(self):
        assert mlox.MixedPrecision(fit).dtype == jnp.bfloat16

    @pytest.mark.parametrize("dtype", [jnp.int32, "half of it", int])
    def test_raises_if_dtype_is_not_floating(self, dtype):
        with pytest.raises(
            TypeError, match=r"MixedPrecision: dtype is .*floating dtype"
        ):
            mlox.MixedPrecision(fit, dtype)


def cubes(x, scale):
    return jnp.sum(scale_cotangent(scale_cotangent(x, 1 / scale) ** 3, scale))


X = jnp.arange(1.0, 4.0)
DERIVATIVES = {
    "gradient": (lambda f: jax.grad(f)(X), 3 * X**2),
    "forward": (lambda f: jax.jvp(f, (X,), (X,))[1], jnp.sum(3 * X**3)),
    "forward over reverse": (
        lambda f: jax.jvp(jax.grad(f), (X,), (X,))[1],
        6 * X**2,
    ),
    "reverse over reverse": (
        lambda f: jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), X))(X),
        6 * X**2,
    ),
    "reverse over forward": (
        lambda f: jax.grad(lambda x: jax.jvp(f, (x,), (X,))[1])(X),
        6 * X**2,
    ),
    "third": (
        lambda f: jax.grad(lambda x: jax.grad(lambda y: jax.grad(f)(y).sum())(x).sum())(
            X
        ),
        6.0 * jnp.ones(3),
    ),
    "checkpointed": (lambda f: jax.grad(jax.checkpoint(f))(X), 3 * X**2),
    "in a scan": (
        lambda f: jax.grad(
            lambda x: jax.lax.scan(lambda c, _: (c + f(x), None), 0.0, None, 2)[0]
        )(X),
        6 * X**2,
    ),
    "mapped": (
        lambda f: jax.vmap(jax.grad(f))(jnp.stack([X, X])),
        jnp.stack([3 * X**2] * 2),
    ),
}


class TestScaleCotangent:
    @pytest.mark.parametrize("kind", DERIVATIVES)
    def test_derivatives_of_every_order_are_unchanged(self, kind):
        derivative, expected = DERIVATIVES[kind]
        found = jax.jit(lambda scale: derivative(lambda x: cubes(x, scale)))(1024.0)
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    @pytest.mark.parametrize("scale", [2.0**-10, 3.0, 2.0**16])
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
    def test_returns_its_argument_and_multiplies_its_cotangent(self, dtype, scale):
        """2^16, the first scale of Flax, is beyond float16: 0.25 * 2^16 is not."""
        x, cotangent = jnp.asarray([1.5, -2.0], dtype), jnp.asarray([0.25, 0.5], dtype)
        tree = {"x": x, "y": (x,)}
        same, pull = jax.vjp(lambda tree: scale_cotangent(tree, scale), tree)
        chex.assert_trees_all_equal(same, tree)
        chex.assert_trees_all_equal_dtypes(same, tree)
        (found,) = pull(jax.tree.map(lambda _: cotangent, tree))
        expected = jax.tree.map(lambda _: scale * np.float64(cotangent), tree)
        expected = jax.tree.map(lambda e: jnp.asarray(e, dtype), expected)
        chex.assert_trees_all_equal(found, expected)
        chex.assert_trees_all_equal_dtypes(found, tree)

    def test_tangents_are_unchanged(self):
        _, tangent = jax.jvp(lambda x: scale_cotangent(x, 8.0), (X,), (X,))
        chex.assert_trees_all_equal(tangent, X)

    @pytest.mark.parametrize("axes", [(0, 0), (None, 0), (1, 0)])
    def test_derivatives_are_unchanged_under_vmap_over_scales(self, axes):
        x = X if axes[0] is None else jnp.stack([X, X], axis=axes[0])
        found = jax.vmap(jax.grad(cubes), axes)(x, jnp.array([2.0, 1024.0]))
        np.testing.assert_allclose(found, jnp.stack([3 * X**2] * 2), rtol=1e-12)

    def test_cotangents_inside_are_scaled(self):
        inside = []

        def seen(x):
            return x

        tapped = jax.custom_vjp(seen)
        tapped.defvjp(lambda x: (x, None), lambda _, ct: (inside.append(ct) or ct,))
        jax.grad(lambda x: scale_cotangent(tapped(scale_cotangent(x, 1 / 8)), 8.0))(1.0)
        assert inside == [8.0]


def assert_upper_waits(made, scale, cycles):
    """Assert that the upper rests for one cycle, which lowers the scale, then moves."""
    step, batches = made.compile(donate=False), {"up": None, "low": None}
    before = made.init()["up"].params
    state, _ = step(made.init(), batches)
    chex.assert_trees_all_equal(state["up"].params, before)
    assert state["low"].loss_scale.scale == scale
    for _ in range(cycles):
        state, _ = step(state, batches)
    assert (state["up"].params != before).all()
    assert jnp.isfinite(state["up"].params).all()


class TestLossScale:
    @every_method
    def test_hypergradient_is_that_without_a_scale(self, method):
        plain = engine(method=method, dtype=jnp.float32)
        other = engine(
            method=method, dtype=jnp.float32, loss_scale=DynamicScale(scale=2.0**10)
        )
        found = [hypergradient(made, jnp.float32) for made in (plain, other)]
        np.testing.assert_allclose(found[1], found[0], rtol=1e-5)

    def alone(self, scale, grow=2000):
        def loss(params, batch, ctx):
            half = params.astype(jnp.float16)
            return (half * jnp.float16(8.0)).sum().astype(jnp.float32)

        problem = mlox.Problem.create(
            name="x",
            params=jnp.ones(2, jnp.float32),
            tx=optax.adam(0.1),
            loss_fn=loss,
            loss_scale=DynamicScale(scale=scale, growth_interval=grow),
        )
        return mlox.Engine([problem])

    def test_update_is_skipped_if_it_overflows(self):
        made = self.alone(2.0**14)  # 8 * 2^14 is beyond float16
        step = made.compile(donate=False)
        first, metrics = step(made.init(), {"x": None})
        assert first["x"].params.tolist() == [1.0, 1.0]
        assert first["x"].opt_state[0].count == 0
        assert first["x"].loss_scale.scale == 2.0**13
        assert metrics["x/loss"] == 16.0
        second, _ = step(first, {"x": None})
        third, _ = step(second, {"x": None})
        assert third["x"].loss_scale.scale == 2.0**12
        assert third["x"].opt_state[0].count == 1
        np.testing.assert_allclose(third["x"].params, 0.9, rtol=1e-5)

    def test_scale_grows_again(self):
        made = self.alone(4.0, grow=2)
        step = made.compile(donate=False)
        state = made.init()
        scales = []
        for _ in range(6):
            state, _ = step(state, {"x": None})
            scales.append(float(state["x"].loss_scale.scale))
        assert scales == [4.0, 4.0, 8.0, 8.0, 8.0, 16.0]

    def test_upper_that_overflows_waits_and_lowers_the_scale_below(self):
        def loss(params, batch, ctx):
            half = (params * ctx.up.params).astype(jnp.float16)
            return half.sum().astype(jnp.float32)

        # The difference divides by 2 epsilon: that overflows where the step does not.
        made = engine(
            loss,
            mlox.FiniteDifference(epsilon=1e-4),
            jnp.float32,
            loss_scale=DynamicScale(scale=2.0**12),
        )
        assert_upper_waits(made, scale=2.0**11, cycles=12)

    @pytest.mark.parametrize(
        "solver",
        [mlox.CG(5), pytest.param(mlox.MINRES(5), marks=pytest.mark.slow)],
    )
    def test_upper_waits_if_a_product_of_its_solver_overflows(self, solver):
        """At a curvature of 1000 CG makes no step: all is finite, without lambda."""

        def loss(params, batch, ctx):
            half = params.astype(jnp.float16)
            linear = half * ctx.up.params.astype(jnp.float16)
            return (jnp.float16(500.0) * half**2 - linear).sum().astype(jnp.float32)

        made = engine(
            loss,
            mlox.Implicit(solver),
            jnp.float32,
            tx=optax.sgd(0.0),
            unroll_steps=1,
            loss_scale=DynamicScale(scale=2.0**12),
        )
        assert_upper_waits(made, scale=2.0**10, cycles=4)

    @pytest.mark.parametrize("order", [("big", "small"), ("small", "big")])
    def test_scale_is_lowered_if_one_of_two_uppers_overflows(self, order):
        def loss(params, batch, ctx):
            # The difference divides by 2 epsilon: a cotangent of 50 times the scale.
            big, small = (
                (params * ctx[name].params).astype(jnp.float16)
                for name in ("big", "small")
            )
            half = small + jnp.float16(128.0) * big
            return half.sum().astype(jnp.float32)

        def upper(name, start):
            return mlox.Problem.create(
                name=name,
                params=jnp.float32(start),
                tx=SGD,
                loss_fn=lambda params, batch, ctx: ctx.low.params * params,
            )

        uppers = {"big": upper("big", 1.0), "small": upper("small", 1.0)}
        low = mlox.Problem.create(
            name="low",
            params=jnp.float32(0.1),
            tx=optax.sgd(0.0),
            loss_fn=loss,
            method=mlox.FiniteDifference(epsilon=0.01),
            loss_scale=DynamicScale(scale=2.0**8),
        )
        made = mlox.Engine(
            [*(uppers[name] for name in order), low],
            {"big": ["low"], "small": ["low"]},
            {"low": ["big", "small"]},
        )
        step = made.compile(donate=False)
        state, batches = made.init(), dict.fromkeys(made.names)
        state, _ = step(state, batches)
        moved = {n: bool(state[n].params != uppers[n].params) for n in order}
        assert moved == {"big": False, "small": True}
        assert state["low"].loss_scale.scale == 2.0**7

    def test_look_ahead_keeps_the_scale_that_it_found(self):
        def loss(params, batch, ctx):
            half = (params * ctx.up.params).astype(jnp.float16)
            return half.sum().astype(jnp.float32)

        made = engine(
            loss,
            mlox.FiniteDifference(epsilon=1e-4),
            jnp.float32,
            loss_scale=DynamicScale(scale=2.0**12),
            roll_back=True,
        )
        state, _ = made.step(made.init(), {"up": None, "low": None})
        assert state["low"].loss_scale.scale == 2.0**11
        assert state["low"].step == 1

    def test_raises_if_loss_scale_is_a_number(self):
        message = "problem 'low': loss_scale is 1024.0; expected a flax.training.dyn"
        with pytest.raises(TypeError, match=re.escape(message)):
            engine(loss_scale=1024.0)


class TestErrors:
    @pytest.mark.parametrize("kind", [mlox.Accumulated, mlox.MixedPrecision])
    def test_raises_if_loss_fn_takes_two_arguments(self, kind):
        message = re.escape(": loss_fn takes (params, batch); expected a function (par")
        with pytest.raises(TypeError, match=kind.__name__ + message):
            kind(lambda params, batch: 0.0, 2)

    @pytest.mark.parametrize(
        ("found", "message"),
        [
            ("low", "loss of 'low' returned 'loss' = 'low'; expected a floating"),
            (
                {"loss": 0.0, "model_state": {"mean": 0.0}},
                "loss of 'low': model_state does not fit the one that it got",
            ),
        ],
    )
    def test_raises_if_loss_in_lower_precision_returns_no_loss(self, found, message):
        made = engine(mlox.MixedPrecision(lambda params, batch, ctx: found))
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(made.step, made.init(), BATCHES)
