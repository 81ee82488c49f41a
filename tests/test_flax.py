"""Flax modules and training states as problems: the same as a loop of Flax's own."""

import functools
import subprocess
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import mlox
import mlox.flax

TX = optax.sgd(0.1, momentum=0.9)
KEY = jax.random.key(0)
X = jax.random.normal(KEY, (2, 6, 3), jnp.float32)  # batches of two steps
EDGES = {"scale": ["net"]}, {"net": ["scale"]}


class Net(nn.Module):
    """With everything that a module may have: statistics and dropout."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(x))


class NNXNet(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(self.first(x))))


assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-6, atol=1e-7)


def scale_problem(loss_fn):
    return mlox.Problem.create(
        name="scale", params=jnp.float32(1.0), tx=optax.sgd(0.1), loss_fn=loss_fn
    )


class TestLinen:
    NET = Net()
    VARIABLES = NET.init(KEY, X[0])

    def loss(self, params, batch, ctx):
        out, state = self.NET.apply(
            {"params": params, **ctx.model_state},
            batch,
            train=ctx.train,
            mutable=["batch_stats"],
            rngs={"dropout": ctx.rng},
        )
        scale = ctx.scale.params if "scale" in ctx.neighbours else 1.0
        loss = jnp.mean((scale * out - 1.0) ** 2)
        return {"loss": loss, "model_state": state}

    def problem(self, **parts):
        parts = {"loss_fn": self.loss, "rng": 0, "tx": TX, **parts}
        return mlox.flax.from_linen(self.NET, self.VARIABLES, name="net", **parts)

    def test_step_returns_the_parameters_of_a_loop(self):
        engine = mlox.Engine([self.problem()])
        state = engine.init()
        step = engine.compile(donate=False)
        for batch in X:
            state, _ = step(state, {"net": batch[None]})
        params, stats = self.VARIABLES["params"], self.VARIABLES["batch_stats"]
        opt_state = TX.init(params)
        for i, batch in enumerate(X):
            ctx = mlox.Context(
                "net",
                {},
                jax.random.fold_in(KEY, i),
                i,
                {"batch_stats": stats},
            )

            def cost(params, batch=batch, ctx=ctx):
                found = self.loss(params, batch, ctx)
                return found["loss"], found["model_state"]

            grads, new = jax.grad(cost, has_aux=True)(params)
            updates, opt_state = TX.update(grads, opt_state, params)
            params, stats = optax.apply_updates(params, updates), new["batch_stats"]
        assert_close(state["net"].params, params)
        assert_close(state["net"].model_state, {"batch_stats": stats})

    @pytest.mark.parametrize("method", [mlox.Unrolled(), mlox.Implicit(mlox.CG(3))])
    def test_apply_returns_the_output_of_a_neighbour_with_state(self, method):
        upper = scale_problem(
            lambda params, batch, ctx: jnp.mean(mlox.flax.apply(ctx.net, X[1]) ** 2)
        )
        lower = self.problem(unroll_steps=2, method=method)
        engine = mlox.Engine([upper, lower], *EDGES)
        batches = {"scale": None, "net": X}
        state, metrics = engine.compile()(engine.init(), batches)
        assert np.isfinite(metrics["scale/loss"]).all()
        assert state["scale"].params != 1.0

    @pytest.mark.parametrize(
        "train", [pytest.param(False, marks=pytest.mark.slow), True]
    )
    def test_apply_maps_over_the_tasks_of_a_neighbour_with_static_arguments(
        self, train
    ):
        problem = self.problem(tasks=2)
        net = mlox.Neighbour(
            problem.params, problem.model_state, problem.apply_fn, "net", tasks=2
        )
        options = {"train": train, "rngs": {"dropout": KEY}, "mutable": ["batch_stats"]}
        found, _ = mlox.flax.apply(net, X, **options)
        assert found.shape == (2, 6, 1)
        variables = self.VARIABLES
        for i, key in enumerate(jax.random.split(KEY)):
            options |= {"rngs": {"dropout": key}}
            assert_close(found[i], self.NET.apply(variables, X[i], **options)[0])

    def test_from_linen_returns_equal_problems_for_equal_modules(self):
        problems = [
            mlox.flax.from_linen(
                nn.Dense(1),
                nn.Dense(1).init(KEY, X[0]),
                name="net",
                tx=TX,
                loss_fn=TestLinen.no_loss,
            )
            for _ in range(2)
        ]
        assert problems[0].apply_fn == problems[1].apply_fn
        structures = [jax.tree.structure(problem) for problem in problems]
        assert structures[0] == structures[1]

    def test_from_linen_hashes_modules_that_hold_lists(self):
        layers = [nn.Dense(2), nn.relu, nn.Dense(1)]
        net = nn.Sequential(layers)
        problems = [
            mlox.flax.from_linen(
                module, net.init(KEY, X[0]), name="net", tx=TX, loss_fn=self.no_loss
            )
            for module in (net, nn.Sequential(list(layers)), nn.Sequential(layers[:1]))
        ]
        first, equal, other = (problem.apply_fn for problem in problems)
        assert first == equal
        assert hash(first) == hash(equal)
        assert first != other

    @staticmethod
    def no_loss(params, batch, ctx):
        return 0.0 * jax.tree.leaves(params)[0].sum()


class TestNNX:
    @staticmethod
    def loss(model, batch, ctx):
        scale = ctx.scale.params if "scale" in ctx.neighbours else 1.0
        return jnp.mean((scale * model(batch) - 1.0) ** 2)

    def problem(self, model, **parts):
        parts = {"loss_fn": self.loss, "tx": TX, **parts}
        return mlox.flax.from_nnx(model, name="net", **parts)

    def test_step_returns_the_variables_of_a_loop(self):
        engine = mlox.Engine([self.problem(NNXNet(nnx.Rngs(0)))])
        state = engine.init()
        step = engine.compile(donate=False)
        for batch in X:
            state, _ = step(state, {"net": batch[None]})
        model = NNXNet(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
        for batch in X:
            grads = nnx.grad(lambda m, b: jnp.mean((m(b) - 1.0) ** 2))(model, batch)
            optimizer.update(model, grads)
        found = mlox.flax.to_nnx(state["net"])
        for kind in (nnx.Param, nnx.BatchStat):
            assert_close(nnx.state(found, kind), nnx.state(model, kind))
        counts = [nnx.state(m, nnx.RngCount) for m in (found, model)]
        assert_close(*counts)

    @pytest.mark.parametrize(
        "method",
        [mlox.Unrolled(), mlox.Implicit(mlox.CG(3)), mlox.FiniteDifference()],
        ids=repr,
    )
    def test_step_returns_a_hypergradient_through_a_module(self, method):
        upper = scale_problem(
            lambda params, batch, ctx: jnp.mean(mlox.flax.apply(ctx.net, X[1]) ** 2)
        )
        lower = self.problem(NNXNet(nnx.Rngs(0)), unroll_steps=2, method=method)
        engine = mlox.Engine([upper, lower], *EDGES)
        state, _ = engine.compile()(engine.init(), {"scale": None, "net": X})
        assert np.isfinite(state["scale"].params)
        assert state["scale"].params != 1.0

    def test_step_trains_the_variables_of_wrt(self):
        model = NNXNet(nnx.Rngs(0))
        last = lambda path, leaf: "last" in path and isinstance(leaf, nnx.Param)
        engine = mlox.Engine([self.problem(model, wrt=last)])
        state, _ = engine.step(engine.init(), {"net": X[:1]})
        found = mlox.flax.to_nnx(state["net"])
        assert_close(nnx.state(found.first), nnx.state(model.first))
        assert (found.last.kernel[...] != model.last.kernel[...]).any()

    def test_run_leaves_the_module_that_was_given(self):
        model = NNXNet(nnx.Rngs(0))
        before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
        engine = mlox.Engine([self.problem(model)])
        engine.run(engine.init(), {"net": list(X)}, 2, loggers=(), donate=True)
        assert_close(nnx.state(model, nnx.Param), before)

    def test_from_nnx_splits_the_random_streams_between_tasks(self):
        problem = self.problem(NNXNet(nnx.Rngs(0)), tasks=2)
        state = mlox.Engine([problem]).init()["net"].model_state
        streams = jax.tree.leaves(nnx.filter_state(state, nnx.RngKey))
        assert streams
        for stream in optax.tree.unwrap_random_key_data(streams):
            assert (stream[0] != stream[1]).any()

    @pytest.mark.slow
    def test_tasks_of_a_module_drop_other_units(self):
        engine = mlox.Engine([self.problem(NNXNet(nnx.Rngs(0)), tasks=2)])
        same = jnp.broadcast_to(X[:1, None], (1, 2, *X.shape[1:]))
        _, metrics = engine.step(engine.init(), {"net": same})
        losses = metrics["net/loss_per_task"][0]
        assert losses[0] != losses[1]

    def test_apply_maps_over_the_tasks_of_a_neighbour(self):
        model = NNXNet(nnx.Rngs(0))
        nets = self.problem(model, tasks=2)
        state = mlox.Engine([nets]).init()["net"]
        one = mlox.Neighbour(
            state.params, state.model_state, state.apply_fn, "net", tasks=2
        )
        found = mlox.flax.apply(one, X)
        for i in range(2):
            own = jax.tree.map(lambda x, i=i: x[i], (state.params, state.model_state))
            alone = mlox.Neighbour(*own, state.apply_fn, "net")
            assert_close(found[i], mlox.flax.apply(alone, X[i]))


class TestTrainState:
    def test_to_train_state_returns_the_state_of_a_loop(self):
        model = nn.Dense(1)
        params = model.init(KEY, X[0])["params"]
        start = TrainState.create(apply_fn=model.apply, params=params, tx=TX)

        def cost(params, batch):
            return jnp.mean((model.apply({"params": params}, batch) - 1.0) ** 2)

        by_hand = start.apply_gradients(grads=jax.grad(cost)(params, X[0]))
        problem = mlox.flax.from_train_state(
            by_hand, name="fit", loss_fn=lambda params, batch, ctx: cost(params, batch)
        )
        engine = mlox.Engine([problem])
        state, _ = engine.step(engine.init(), {"fit": X[1:]})
        found = mlox.flax.to_train_state(state["fit"], by_hand)
        expected = by_hand.apply_gradients(grads=jax.grad(cost)(by_hand.params, X[1]))
        assert_close(found, expected)
        assert int(found.step) == 2
        out = state["fit"].apply_fn(found.params, X[0])
        np.testing.assert_array_equal(out, model.apply({"params": found.params}, X[0]))


def test_import_of_mlox_does_not_load_flax():
    program = "import sys, mlox; sys.exit('flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
