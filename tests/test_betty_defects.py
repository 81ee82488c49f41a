"""Defects of Betty 0.2.1, found by running it, that mlox does not have.

The line under each name says what goes wrong there. Most tests share one program, the
lower of which stands at its answer A^{-1} x from the start.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

from .trees import STANDARD, with_key_data

A = jnp.array(
    [
        [3.0, 1.0, 0.5, 0.2],
        [1.0, 2.0, 0.3, 0.1],
        [0.5, 0.3, 1.5, 0.4],
        [0.2, 0.1, 0.4, 2.5],
    ]
)
X = jnp.array([0.3, 0.4, 0.2, -0.1])
ANSWER = jnp.linalg.solve(A, X)
INVERSE = jnp.linalg.inv(A)
EDGES = {"up": ["low"]}, {"low": ["up"]}
NO_DATA = {"up": None, "low": None}
SGD = optax.sgd(0.1)


def low_cost(params, batch, ctx):
    return 0.5 * params @ A @ params - ctx.up.params @ params


def up_cost(params, batch, ctx):
    return 0.5 * jnp.sum((ctx.low.params - 1) ** 2) + 0.5 * params @ params


def bilevel(method=None, low=low_cost, up=up_cost, up_tx=SGD, engine=None, **parts):
    """Make an upper over a lower; `parts` are those of the lower."""
    parts = {"params": ANSWER, "tx": SGD, **parts}
    problems = [
        mlox.Problem.create(name="up", params=X, tx=up_tx, loss_fn=up),
        mlox.Problem.create(name="low", loss_fn=low, method=method, **parts),
    ]
    return mlox.Engine(problems, *EDGES, **(engine or {}))


def single(loss_fn, **parts):
    parts = {"name": "x", "params": jnp.zeros(()), "tx": SGD, **parts}
    return mlox.Problem.create(loss_fn=loss_fn, **parts)


def hypergradient(engine, name="up"):
    batches = dict.fromkeys(engine.names)
    return jax.jit(lambda state: engine.hypergradient(state, batches, name)[1])(
        engine.init()
    )


def after_cycles(engine, cycles=1, state=None, batches=None):
    """Return the state after some cycles, every one with the same batches."""
    batches = dict.fromkeys(engine.names) if batches is None else batches
    state = engine.init() if state is None else state
    cycle = lambda state, _: (engine.step(state, batches)[0], None)
    return jax.jit(lambda s: jax.lax.scan(cycle, s, None, cycles)[0])(state)


def run(engine, data=None, train_iters=1, **options):
    options = {"loggers": (), "progress": False, "log_every": 1, **options}
    return engine.run(engine.init(), data, train_iters, **options)


def assert_close(found, expected, rtol=1e-12):
    chex.assert_tree_all_finite(found)
    chex.assert_trees_all_close(found, expected, rtol=rtol, atol=1e-12)


def indirect(matrix, params=ANSWER):
    """Return x + M (w - 1): the direct gradient, and that through the answer."""
    return X + matrix @ (params - 1)


class TestIterativeDifferentiation:
    """Betty's README lists it; none of its classes gets past its first step."""

    START = jnp.array([0.5, -0.5, 1.0, 0.2])

    def unrolled(self, tx, **parts):
        return bilevel(
            mlox.Unrolled(), params=self.START, tx=tx, unroll_steps=3, **parts
        )

    @staticmethod
    def outer(w, x):
        return 0.5 * jnp.sum((w - 1) ** 2) + 0.5 * x @ x

    def test_momentum_and_weight_decay_are_differentiated(self):
        """B1, B2: no iterative problem starts; momentum and decay are set to zero."""
        tx = optax.chain(optax.add_decayed_weights(0.2), optax.sgd(0.1, momentum=0.9))

        def by_hand(x):
            w, trace = self.START, 0.0
            for _ in range(3):
                trace = 0.9 * trace + A @ w - x + 0.2 * w
                w = w - 0.1 * trace
            return self.outer(w, x)

        assert_close(hypergradient(self.unrolled(tx)), jax.jit(jax.grad(by_hand))(X))

    def test_adamw_is_differentiated(self):
        """B3: its update returns no parameters, and leaves out the square root."""
        tx = optax.adamw(0.1, eps=1e-4, eps_root=1e-6, weight_decay=0.3)

        def by_hand(x):
            w, m, v = self.START, 0.0, 0.0
            for t in range(1, 4):
                g = A @ w - x
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                root = jnp.sqrt(v / (1 - 0.999**t) + 1e-6)
                w = w - 0.1 * (m / (1 - 0.9**t) / (root + 1e-4) + 0.3 * w)
            return self.outer(w, x)

        assert_close(
            hypergradient(self.unrolled(tx)), jax.jit(jax.grad(by_hand))(X), 1e-9
        )

    @pytest.mark.filterwarnings("ignore:.* takes a norm that has no derivative")
    def test_an_optimizer_that_goes_by_the_loss_is_differentiated(self):
        """B1, B2: no optimizer is; here the loss that it is given counts, too."""
        low = lambda w, batch, ctx: low_cost(w, batch, ctx) + 3.0

        def by_hand(x):
            w = self.START
            for _ in range(3):
                cost, g = 0.5 * w @ A @ w - x @ w + 3.0, A @ w - x
                w = w - jnp.minimum(cost / (g @ g), 2.0) * g
            return self.outer(w, x)

        tx = optax.polyak_sgd(max_learning_rate=2.0)
        found = hypergradient(self.unrolled(tx, low=low))
        assert_close(found, jax.jit(jax.grad(by_hand))(X))

    def test_parameters_that_no_loss_reads_keep_their_place(self):
        """B4: they are dropped from the answer, so that all others are shifted."""
        low = lambda w, batch, ctx: low_cost(w["b"], batch, ctx) + w["d"] ** 2
        up = lambda x, batch, ctx: jnp.sum((ctx.low.params["b"] - 1) ** 2)
        params = {"a": jnp.ones(2), "b": ANSWER, "c": jnp.ones(3), "d": jnp.zeros(())}
        engine = bilevel(mlox.Unrolled(), low, up, params=params)
        assert_close(hypergradient(engine), 0.1 * 2 * (ANSWER - 1))
        after = after_cycles(engine)["low"].params
        assert_close(after, {**params})

    def test_maml_differentiates_through_the_steps(self):
        """B5: its examples import classes that do not exist."""
        engine = bilevel(
            mlox.Unrolled(),
            low=lambda w, batch, ctx: 0.5 * w @ A @ w - w.sum(),
            up=lambda x, batch, ctx: 0.5 * jnp.sum((ctx.low.params - 1) ** 2),
            reset=lambda params, ctx: ctx.up.params,
        )
        adapted = X - 0.1 * (A @ X - 1)
        assert_close(hypergradient(engine), (jnp.eye(4) - 0.1 * A) @ (adapted - 1))


class TestNumbers:
    """Numbers that come out wrong."""

    @pytest.mark.parametrize(
        ("solver", "matrix"),
        [
            (mlox.CG(iterations=4), INVERSE),
            (mlox.CG(iterations=60), INVERSE),
            (mlox.CG(iterations=60, tolerance=1e-13), INVERSE),
            (mlox.CG(iterations=4, damping=0.5), jnp.linalg.inv(A + 0.5 * jnp.eye(4))),
        ],
        ids=repr,
    )
    def test_conjugate_gradients_are_exact_at_any_setting(self, solver, matrix):
        """B6: off by a factor of 2.7 at cg_alpha=0.1. B7: NaN past convergence."""
        found = hypergradient(bilevel(mlox.Implicit(solver)))
        assert_close(found, indirect(matrix), 1e-10)

    @pytest.mark.parametrize(
        "method",
        [mlox.Implicit(mlox.CG(10)), mlox.Implicit(), mlox.FiniteDifference()],
        ids=repr,
    )
    def test_an_answer_that_does_not_matter_gives_zero(self, method):
        """B7: conjugate gradients divide zero by zero."""
        up = lambda x, batch, ctx: x @ x + 0 * ctx.low.params.sum()
        np.testing.assert_array_equal(hypergradient(bilevel(method, up=up)), 2 * X)

    def test_a_neumann_series_is_its_sum(self):
        """B8: its default step diverges for a Hessian beyond 2, and nothing says so."""
        found = hypergradient(bilevel(mlox.Implicit(mlox.Neumann(3, step=0.2))))
        powers = [jnp.linalg.matrix_power(jnp.eye(4) - 0.2 * A, i) for i in range(4)]
        assert_close(found, indirect(0.2 * sum(powers)))

    def test_the_residual_of_a_series_says_whether_it_converges(self):
        """B8: there is no residual."""
        residuals = []
        for step in (0.25, 1.0):
            engine = bilevel(mlox.Implicit(mlox.Neumann(60, step)))
            metrics = jax.jit(engine.step)(engine.init(), NO_DATA)[1]
            residuals.append(float(metrics["up/low/residual"][0]))
        assert residuals[0] < 1e-6
        assert residuals[1] > 1e6

    @pytest.mark.parametrize("steps", [1, 5, 50])
    def test_sama_knows_the_bias_correction_of_adam(self, steps):
        """B9: it is left out: zero at the first step, off by a factor of 5.8 at five.

        With update number t, du/dg = -a [(1-b1)/c1 / q - m/c1 (1-b2) g/c2 / (r q^2)],
        r = sqrt(v/c2), q = r + eps, c1 = 1-b1^t, c2 = 1-b2^t.
        """
        engine = bilevel(
            mlox.SAMA(),
            params=jnp.ones(4),
            tx=optax.adam(0.1),
            unroll_steps=steps,
            up_tx=optax.sgd(1.0),
        )
        after = after_cycles(engine)
        low, t = after["low"], steps + 1
        moments = low.opt_state[0]
        g = A @ low.params - X
        m, v = 0.9 * moments.mu + 0.1 * g, 0.999 * moments.nu + 0.001 * g**2
        c1, c2 = 1 - 0.9**t, 1 - 0.999**t
        r = jnp.sqrt(v / c2)
        q = r + 1e-8
        slope = -0.1 * (0.1 / c1 / q - m / c1 * 0.001 * g / c2 / (r * q**2))
        assert_close(
            X - after["up"].params, indirect(jnp.diag(-slope), low.params), 1e-9
        )

    @pytest.mark.parametrize(
        "tx",
        [
            optax.nadam(0.1),
            optax.radam(0.1),
            optax.adamax(0.1),
            optax.adagrad(0.1),
            optax.rmsprop(0.1),
            optax.amsgrad(0.1),
            optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9)),
        ],
        ids=["nadam", "radam", "adamax", "adagrad", "rmsprop", "amsgrad", "clipped"],
    )
    def test_sama_takes_any_optimizer_as_it_is(self, tx):
        """B10: guessed by name: Adam for NAdam, SGD for Adagrad, 1e18 for Adamax."""
        engine = bilevel(
            mlox.SAMA(), params=jnp.ones(4), tx=tx, unroll_steps=6, up_tx=optax.sgd(1.0)
        )
        after = after_cycles(engine)
        low = after["low"]
        g, e = A @ low.params - X, 1e-6
        update = jax.jit(jax.vmap(lambda g: tx.update(g, low.opt_state, low.params)[0]))
        with STANDARD:
            up, down = (update(g[None] + s * e * jnp.eye(4)) for s in (1, -1))
        expected = indirect(-(up - down) / (2 * e), low.params)
        assert_close(X - after["up"].params, expected, 1e-6)

    @pytest.mark.parametrize("name", ["adam", "amsgrad", "nadam", "lamb"])
    def test_sama_is_finite_where_a_gradient_is_zero(self, name):
        """Not Betty's defect: a square root at zero, of a unit that never fires."""

        def gradient(read):
            def low(w, batch, ctx):
                unit = jax.nn.relu(w["dead"] * ctx.up.params[0] - 10.0)
                rest = unit * ctx.up.params[1] if read else 0.0
                return low_cost(w["live"], batch, ctx) + rest

            def up(x, batch, ctx):
                w = ctx.low.params
                return 0.5 * jnp.sum((w["live"] - 1) ** 2) + w["dead"] ** 2

            params = {"live": jnp.ones(4), "dead": jnp.ones(())}
            tx = getattr(optax, name)(0.1)
            return hypergradient(bilevel(mlox.SAMA(), low, up, params=params, tx=tx))

        assert_close(gradient(True), gradient(False))

    def test_sama_takes_an_optimizer_that_goes_by_the_loss(self):
        """B10: unknown there: with u = -C g / |g|^2, C held fixed."""
        tx = optax.polyak_sgd(max_learning_rate=10.0)
        engine = bilevel(mlox.SAMA(), params=jnp.ones(4), tx=tx, up_tx=optax.sgd(1.0))
        after = after_cycles(engine)
        w = after["low"].params
        g, cost = A @ w - X, 0.5 * w @ A @ w - X @ w
        slope = cost / (g @ g) * (jnp.eye(4) - 2 * jnp.outer(g, g) / (g @ g))
        assert_close(X - after["up"].params, indirect(slope, w))

    def test_both_ends_of_a_difference_draw_the_same_dropout(self):
        """B11: they draw two masks: a standard deviation of 252 at a norm of 7.8."""

        def kept(key):
            return jnp.where(jax.random.bernoulli(key, 0.8, (4,)), 1 / 0.8, 0.0)

        def low(params, batch, ctx):
            return low_cost(kept(ctx.rng) * params, batch, ctx)

        engine = bilevel(mlox.FiniteDifference(), low, tx=optax.sgd(0.0), rng=0)
        state, keys = engine.init(), jax.random.split(jax.random.key(1), 64)

        def gradient(key):
            drawn = {**state, "low": state["low"].replace(rng=key)}
            return engine.hypergradient(drawn, NO_DATA, "up")[1]

        found = jax.jit(jax.vmap(gradient))(keys)
        masks = jax.jit(jax.vmap(lambda key: kept(jax.random.fold_in(key, 0))))(keys)
        assert_close(found, X[None] + masks * (ANSWER - 1)[None], 1e-9)
        assert jnp.linalg.norm(found.std(0)) < jnp.linalg.norm(found.mean(0))

    @pytest.mark.parametrize(
        "method", [mlox.FiniteDifference(), mlox.Implicit(mlox.CG(3))], ids=repr
    )
    def test_batch_statistics_advance_once_for_each_step(self, method):
        """B11: hypergradients update them too, four times after one step."""

        def low(params, batch, ctx):
            mean = 0.5 * ctx.model_state + 0.5 * batch
            return {"loss": low_cost(params, batch, ctx), "model_state": mean}

        engine = bilevel(method, low, model_state=jnp.zeros(()))
        batches = {"up": None, "low": jnp.ones(1)}
        assert after_cycles(engine, 1, None, batches)["low"].model_state == 0.5

    def test_a_schedule_counts_the_steps_of_the_optimizer(self):
        """B12: it counts micro-batches: a rate of 0.0625 in place of 0.5."""
        problem = single(
            mlox.Accumulated(lambda p, batch, ctx: p * jnp.mean(batch), 4),
            tx=optax.sgd(optax.exponential_decay(1.0, 1, 0.5)),
        )
        batches = {"x": jnp.ones((1, 8))}
        after = after_cycles(mlox.Engine([problem]), 2, None, batches)["x"]
        assert after.step == 2
        assert_close(after.params, -1.0 - 0.5)

    def test_groups_of_parameters_are_honoured_and_what_is_frozen_stays(self):
        """B13: rates of groups are lost, and a frozen layer is trained."""
        params = {k: jnp.zeros(()) for k in ("body", "head", "frozen")}
        problem = single(
            lambda p, batch, ctx: p["body"] + p["head"] + p["frozen"],
            params=params,
            tx=optax.partition(
                {"slow": optax.sgd(0.1), "fast": optax.sgd(1.0, momentum=0.5)},
                {"body": "slow", "head": "fast", "frozen": "slow"},
            ),
            trainable=lambda params: {"body": True, "head": True, "frozen": False},
        )
        after = after_cycles(mlox.Engine([problem]), 2)["x"].params
        found = [float(after[k]) for k in ("body", "head", "frozen")]
        assert_close(found, [-0.2, -1.0 - 1.5, 0.0])

    def test_a_pass_yields_each_batch_once(self):
        """B14: its distributed sampler yields the last batch again, and differs."""
        problem = single(lambda p, batch, ctx: {"loss": p * 0, "seen": batch})
        _, history = run(mlox.Engine([problem]), {"x": list(np.arange(6.0))}, 12)
        np.testing.assert_array_equal(history["x/seen"], [*range(6), *range(6)])


class TestCrashes:
    """What raises there, often at the first outer step."""

    def test_early_stopping_stops(self):
        """B15: its class reads an attribute that it does not have."""
        engine = mlox.Engine([single(lambda p, batch, ctx: (p - 1) ** 2)])
        rule = mlox.EarlyStopping("validation/distance", "min", patience=2)
        score = lambda state: {"distance": abs(float(state["x"].params) - 0.3)}
        state, history = run(engine, None, 50, validation=score, early_stopping=rule)
        assert len(history["cycle"]) == int(history["best_cycle"]) + 2 < 10
        assert abs(float(state["x"].params) - 0.3) < 0.1

    def test_a_step_takes_arrays_on_a_mesh(self):
        """B16: the strategy "accelerate" fails when an engine is made."""
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
        spread = jax.sharding.NamedSharding(
            mesh, jax.sharding.PartitionSpec(None, "data")
        )
        low = lambda w, batch, ctx: low_cost(w, batch, ctx) + jnp.mean(batch @ w)
        engine, batch = bilevel(mlox.SAMA(), low), jnp.ones((1, 8, 4))
        step = jax.jit(engine.step)
        found, expected = (
            step(engine.init(), {"up": None, "low": b})[0]["up"].params
            for b in (jax.device_put(batch, spread), batch)
        )
        assert_close(found, expected)

    def test_three_levels_roll_back_with_loops_in_loops(self):
        """B17: a middle level with unroll_steps=2 loads a state that is None."""
        cost = lambda *names: (
            lambda p, batch, ctx: (
                0.5 * p**2 + sum((p - ctx[n].params) ** 2 for n in names)
            )
        )
        problems = [
            single(cost("p"), name="t", params=jnp.ones(())),
            single(cost("t", "c"), name="p", unroll_steps=2),
            single(cost("p"), name="c", unroll_steps=3),
        ]
        graph = {"t": ["p"], "p": ["c"]}, {"c": ["p"], "p": ["t"]}
        after = after_cycles(mlox.Engine(problems, *graph, roll_back=True), 2)
        assert [int(after[n].step) for n in "tpc"] == [2, 2, 2]
        assert all(np.isfinite(after[n].params) for n in "tpc")

    @pytest.mark.parametrize(
        ("method", "matrix"),
        [
            (mlox.Implicit(mlox.CG(6)), INVERSE),
            (mlox.Implicit(mlox.Neumann(300, 0.25)), INVERSE),
            (mlox.FiniteDifference(), jnp.eye(4)),
            (mlox.SAMA(), 0.1 * jnp.eye(4)),
            (mlox.Unrolled(), 0.1 * jnp.eye(4)),
        ],
        ids=["cg", "neumann", "difference", "sama", "unrolled"],
    )
    def test_the_loss_of_a_lower_may_be_a_dict(self, method, matrix):
        """B18: as documented there, but all four implicit methods fail on it."""

        def low(params, batch, ctx):
            return {"loss": low_cost(params, batch, ctx), "size": params @ params}

        assert_close(hypergradient(bilevel(method, low)), indirect(matrix), 1e-8)

    def test_an_upper_reads_its_own_parameters_step_after_step(self):
        """B19: backward a second time through a graph that was freed."""
        engine = bilevel(mlox.Implicit(mlox.Dense()), tx=optax.sgd(0.0))
        after = after_cycles(engine, 3)["up"].params
        x = X
        for _ in range(3):
            x = x - 0.1 * (x + INVERSE @ (ANSWER - 1))
        assert_close(after, x)

    def test_a_graph_is_rewired_on_the_same_state(self):
        """B20: an index error, and flags of the old graph."""

        def reader(params, batch, ctx):
            uppers = sum(n.params for n in ctx.neighbours.values())
            return 0.5 * (params - uppers) ** 2

        def reading(params, batch, ctx):
            answers = sum((n.params - 1) ** 2 for n in ctx.neighbours.values())
            return answers + 0.5 * params**2

        problems = [single(reading, name="a"), single(reading, name="b")]
        problems.append(single(reader, name="c", tx=optax.sgd(1.0)))
        before = mlox.Engine(problems, {"a": ["c"]}, {"c": ["a"]})
        after = mlox.Engine(problems, {"a": ["c"], "b": ["c"]}, {"c": ["a", "b"]})
        state = after_cycles(before)
        assert float(state["b"].params) == 0.0
        state = after_cycles(after, 1, state)
        assert_close(state["b"].params, 0.1 * 2 * (1 - 0.2))
        assert [int(state[n].step) for n in "abc"] == [2, 2, 2]

    def test_a_problem_needs_no_options_and_no_edges(self):
        """B21: config=None and dependencies=None raise."""
        engine = mlox.Engine([single(lambda p, batch, ctx: (p - 1) ** 2)])
        assert_close(after_cycles(engine)["x"].params, 0.2)

    def test_adamw_decays_weights(self):
        """B22: its options are not those that the current PyTorch has."""
        tx = optax.adamw(0.1, eps=0.0, weight_decay=0.5)
        problem = single(lambda p, batch, ctx: 3 * p, params=jnp.ones(()), tx=tx)
        assert_close(
            after_cycles(mlox.Engine([problem]))["x"].params, 1 - 0.1 * (1 + 0.5)
        )

    SCHEDULES = (
        optax.constant_schedule(0.3),
        optax.linear_schedule(1.0, 0.1, 5),
        optax.polynomial_schedule(1.0, 0.1, 2, 5),
        optax.exponential_decay(1.0, 2, 0.5),
        optax.cosine_decay_schedule(1.0, 6),
        optax.piecewise_constant_schedule(1.0, {2: 0.5, 4: 0.1}),
        optax.piecewise_interpolate_schedule("cosine", 1.0, {3: 0.5, 6: 0.1}),
        optax.warmup_constant_schedule(0.0, 1.0, 3),
        optax.warmup_cosine_decay_schedule(0.0, 1.0, 2, 6),
        optax.warmup_exponential_decay_schedule(0.0, 1.0, 2, 3, 0.5),
        optax.cosine_onecycle_schedule(6, 1.0),
        optax.linear_onecycle_schedule(6, 1.0),
        optax.sgdr_schedule(
            [
                {
                    "init_value": 0.0,
                    "peak_value": 1.0,
                    "decay_steps": 3,
                    "warmup_steps": 1,
                },
                {
                    "init_value": 0.0,
                    "peak_value": 0.5,
                    "decay_steps": 3,
                    "warmup_steps": 1,
                },
            ]
        ),
        optax.join_schedules([lambda t: 1.0 + t, lambda t: 0.1 * t], [3]),
    )

    def test_schedules_count_steps(self):
        """B22: one-cycle, sequential and plateau schedules raise."""
        problems = [
            single(lambda p, batch, ctx: p, name=f"s{i}", tx=optax.sgd(schedule))
            for i, schedule in enumerate(self.SCHEDULES)
        ]
        after = after_cycles(mlox.Engine(problems), 6)
        found = [after[problem.name].params for problem in problems]
        rates = jax.jit(jax.vmap(lambda t: [s(t) * 1.0 for s in self.SCHEDULES]))
        with STANDARD:
            expected = [-rate.sum() for rate in rates(jnp.arange(6))]
        assert_close(found, expected, 1e-6)

    def test_the_rate_falls_on_a_plateau_of_the_loss(self):
        """B22: ReduceLROnPlateau raises."""
        plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2)
        tx = optax.chain(optax.sgd(1.0), plateau)
        flat = lambda p, batch, ctx: 1.0 + p - jax.lax.stop_gradient(p)
        after = after_cycles(mlox.Engine([single(flat, tx=tx)]), 8)["x"].params
        assert_close(after, -2 * (1 + 0.5 + 0.25 + 0.125))

    def test_a_solver_sees_the_trainable_subset_only(self):
        """B23: conjugate gradients differentiate frozen parameters and fail."""

        def low(w, batch, ctx):
            return low_cost(jnp.concatenate([w["a"], w["b"]]), batch, ctx)

        def up(x, batch, ctx):
            return 0.5 * jnp.sum((ctx.low.params["a"] - 1) ** 2)

        a = jnp.linalg.solve(A[:2, :2], X[:2] - A[:2, 2:] @ jnp.ones(2))
        engine = bilevel(
            mlox.Implicit(mlox.CG(2)),
            low,
            up,
            params={"a": a, "b": jnp.ones(2)},
            trainable=lambda params: {"a": True, "b": False},
        )
        expected = jnp.linalg.solve(A[:2, :2], a - 1)
        assert_close(hypergradient(engine), jnp.append(expected, jnp.zeros(2)))

    def test_a_policy_is_trained_on_what_it_samples(self):
        """B25: its REINFORCE takes three arguments, gets four, and returns None."""

        def actions(params, ctx):
            return params + jax.random.normal(ctx.rng, (100_000,))

        def score(params, batch, ctx):
            cost = (batch - 1) ** 2
            log_density = -0.5 * (batch - params) ** 2
            return jnp.mean((cost - cost.mean()) * log_density)

        engine = mlox.Engine([single(score, sample=actions, rng=0)])
        assert_close(
            hypergradient(engine, "x"), -2.0, 0.05
        )  # d/dp E (a - 1)^2 = 2 (p - 1)


class TestLimitations:
    """What it cannot do."""

    @pytest.mark.parametrize(
        ("coupling", "method", "slope"),
        [
            ("direct", mlox.Implicit(mlox.CG(2)), 1.0),
            ("total", mlox.Implicit(), 0.5),
        ],
        ids=["direct", "total"],
    )
    def test_solvers_serve_in_the_middle_of_a_graph(self, coupling, method, slope):
        """L1: they refuse a problem that is an upper itself.

        c = p, p = argmin (p - t)^2 / 2 + c^2 / 2 = t / 2, taken by itself dp/dt = 1.
        """
        t = jnp.array(0.8)
        problems = [
            single(lambda t, _, ctx: (ctx.p.params - 1) ** 2 / 2, name="t", params=t),
            single(
                lambda p, _, ctx: (p - ctx.t.params) ** 2 / 2 + ctx.c.params**2 / 2,
                name="p",
                params=t / 2,
                method=method,
                tx=optax.sgd(0.0),
            ),
            single(
                lambda c, _, ctx: (c - ctx.p.params) ** 2 / 2,
                name="c",
                params=t / 2,
                method=mlox.Implicit(mlox.CG(2)),
            ),
        ]
        graph = {"t": ["p"], "p": ["c"]}, {"c": ["p"], "p": ["t"]}
        engine = mlox.Engine(problems, *graph, coupling=coupling)
        assert_close(hypergradient(engine, "t"), slope * (t / 2 - 1))

    def test_sama_has_the_scale_of_a_step(self):
        """L2: for SGD it carries no rate, so its scale is arbitrary."""
        found, expected = (
            hypergradient(bilevel(method, params=jnp.ones(4), tx=optax.sgd(0.03)))
            for method in (mlox.SAMA(), mlox.Unrolled())
        )
        assert_close(found, expected)

    def test_loggers_get_the_values_of_all_metrics(self):
        """L3: it logs keys for values, and Weights & Biases is never started."""
        rows = []

        class Collect:
            log = staticmethod(lambda step, metrics: rows.append(metrics))
            close = staticmethod(lambda: None)

        problem = single(lambda p, batch, ctx: {"loss": p + 1, "seven": 7.0})
        run(mlox.Engine([problem]), loggers=[Collect()])
        assert (rows[0]["x/loss"], rows[0]["x/seven"]) == (1.0, 7.0)

    @pytest.mark.parametrize(
        "wrap",
        [lambda x: x, lambda x: {"image": {"x": x}, "label": (x, x)}],
        ids=["one array", "nested"],
    )
    def test_a_batch_is_any_pytree(self, wrap):
        """L4: one tensor is split into its rows, and a nested batch stays behind."""
        sizes = lambda batch: [leaf.shape for leaf in jax.tree.leaves(batch)]
        shapes = []

        def loss(params, batch, ctx):
            shapes.append(sizes(batch))
            return params * sum(x.sum() for x in jax.tree.leaves(batch))

        batch = wrap(np.ones((5, 2)))
        run(mlox.Engine([single(loss)]), {"x": [batch]})
        assert all(found == sizes(batch) for found in shapes)

    def test_new_data_is_used_at_once(self):
        """L4: a new loader waits until the old one has come to its end."""
        problem = single(lambda p, batch, ctx: {"loss": 0 * p, "seen": batch})
        engine = mlox.Engine([problem])
        for data in ([1.0, 2.0, 3.0], [10.0, 20.0]):
            assert run(engine, {"x": data})[1]["x/seen"] == data[:1]


@functools.cache
def noisy():
    """Make a program that draws, with momentum."""

    def low(params, batch, ctx):
        noise = jax.random.normal(ctx.rng, (4,))
        return low_cost(params, batch, ctx) + 0.1 * noise @ params

    tx = optax.sgd(0.1, momentum=0.9)
    engine = bilevel(mlox.Implicit(mlox.CG(4)), low, tx=tx, rng=3, unroll_steps=2)
    return engine, jax.jit(engine.step)


class TestPureSteps:
    """L6: no seeds, resume, tasks side by side, methods of one's own; syncs each step.

    An engine and its optimizers are objects that change there.
    """

    @staticmethod
    def after(cycles, state=None):
        engine, step = noisy()
        state = engine.init() if state is None else state
        for _ in range(cycles):
            state, _ = step(state, NO_DATA)
        return state

    @staticmethod
    def assert_same(one, other):
        chex.assert_trees_all_equal(with_key_data(one), with_key_data(other))

    def test_a_seed_is_the_whole_run(self):
        """L6: there are no seeds."""
        self.assert_same(self.after(3), self.after(3))

    def test_a_state_goes_on_bit_by_bit(self):
        """L6: counters, random keys and graph are not part of what is saved."""
        middle = self.after(2)
        leaves, structure = jax.tree.flatten(middle)
        saved = [jnp.array(leaf, copy=True) for leaf in leaves]
        self.assert_same(
            self.after(4), self.after(2, jax.tree.unflatten(structure, saved))
        )

    def test_tasks_are_mapped_over(self):
        """L6: tasks run one after the other."""
        engine, step = noisy()
        state = engine.init()
        states = [
            {**state, "up": state["up"].replace(params=jnp.full(4, x))}
            for x in (0.0, 1.0, 2.0)
        ]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        found = jax.jit(jax.vmap(engine.step, (0, None)))(stacked, NO_DATA)[0]
        for i, state in enumerate(states):
            assert_close(found["up"].params[i], step(state, NO_DATA)[0]["up"].params)

    def test_a_step_reads_no_value_of_an_array(self):
        """L6: an .item() at every step makes the host wait for the device."""
        engine, _ = noisy()
        shapes = jax.eval_shape(engine.init)
        after, metrics = jax.eval_shape(engine.step, shapes, NO_DATA)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, shapes)
        assert metrics["up/loss"].shape == (1,)

    def test_a_method_is_a_value_of_ones_own(self):
        """L6: a method is an entry in a dict of the package."""

        @dataclasses.dataclass(frozen=True)
        class Half:
            def multiplier(self, answer, cotangent, guess):
                return jax.tree.map(lambda v: v / 2, cotangent), {}

            def pairing(self, cost, point, multiplier):
                return jax.jvp(cost, (point,), (multiplier,))[1]

        assert_close(hypergradient(bilevel(Half())), indirect(0.5 * jnp.eye(4)))
