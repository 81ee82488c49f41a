"""What problems and engines do on request: each against the same by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._problem.optimizer import optimizer_of

NO_DATA = {"up": None, "low": None}
EDGES = {"up": ["low"]}, {"low": ["up"]}
A = jnp.array([[3.0, 1.0, 0.5], [1.0, 2.0, 0.3], [0.5, 0.3, 1.5]])
X = jnp.array([0.3, 0.4, 0.2])
WEIGHTS = {"a": jnp.zeros(2), "b": jnp.ones(1)}
HEAD = {"a": True, "b": False}


def only_a(params):
    return HEAD


def flat(tree):
    return jnp.concatenate([tree["a"], tree["b"]])


def target(params, batch, ctx):
    return jnp.sum((flat(ctx.low.params) - 1) ** 2) + params @ params


def quadratic(params, batch, ctx):
    v = flat(params)
    return 0.5 * v @ A @ v - ctx.up.params @ v


def two(method=None, up=target, low=quadratic, params=None, x=X, engine=None, **parts):
    """Make an upper over a lower; `parts` are those of the lower."""
    parts = {"tx": optax.sgd(0.3), "unroll_steps": 3, **parts}
    problems = [
        mlox.Problem.create(name="up", params=x, tx=optax.sgd(0.1), loss_fn=up),
        mlox.Problem.create(
            name="low",
            params=WEIGHTS if params is None else params,
            loss_fn=low,
            method=method,
            **parts,
        ),
    ]
    return mlox.Engine(problems, *EDGES, **(engine or {}))


def hypergradient(engine, batches=NO_DATA):
    return jax.jit(lambda state: engine.hypergradient(state, batches, "up")[1])(
        engine.init()
    )


def assert_raises(message, build):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        build()


def falling(params, batch, ctx):
    """Have the slope -1, and read every neighbour, to no effect."""
    reads = sum(other.params for other in ctx.neighbours.values())
    return (0 * reads - 1) * params


class TestReset:
    """Model-agnostic meta-learning: the upper is where the lower starts."""

    TX = optax.sgd(0.1, momentum=0.5)

    @staticmethod
    def task(params):
        return jnp.sum(params**4) / 4 + 0.5 * params @ A @ params - params.sum()

    @staticmethod
    def outer(params):
        return 0.5 * jnp.sum((params - 2.0) ** 4)

    def engine(self, method, steps=3, **parts):
        parts = {
            "up": lambda params, batch, ctx: self.outer(ctx.low.params),
            "low": lambda params, batch, ctx: self.task(params),
            "reset": lambda params, ctx: 1.0 * ctx.up.params,
            "params": jnp.ones(3),
            "tx": self.TX,
            **parts,
        }
        return two(method, unroll_steps=steps, **parts)

    def adapted(self, x, steps=3):
        params, state = x, self.TX.init(x)
        for _ in range(steps):
            update, state = self.TX.update(jax.grad(self.task)(params), state)
            params = params + update
        return params

    @pytest.mark.parametrize("checkpoint", [None, "step", "segments"])
    def test_unrolled_is_maml(self, checkpoint):
        found = hypergradient(self.engine(mlox.Unrolled(checkpoint=checkpoint), 5))
        expected = jax.grad(lambda x: self.outer(self.adapted(x, 5)))(X)
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_detached_is_first_order_maml(self):
        found = hypergradient(self.engine(mlox.Detached()))
        expected = jax.grad(self.outer)(self.adapted(X))
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_detached_without_reset_is_a_constant(self):
        found = hypergradient(two(mlox.Detached()))
        np.testing.assert_allclose(found, 2 * X)

    def test_truncation_cuts_the_start_off(self):
        found = hypergradient(self.engine(mlox.Unrolled(last_steps=2)))
        np.testing.assert_array_equal(found, np.zeros(3))

    def test_implicit_maml(self):
        def near_start(params, batch, ctx):
            return self.task(params) + jnp.sum((params - ctx.up.params) ** 2)

        found = hypergradient(
            self.engine(mlox.Implicit(mlox.Dense()), 400, low=near_start)
        )

        def solved(x):
            y = x
            for _ in range(8):
                slope = lambda y: jax.grad(self.task)(y) + 2 * (y - x)
                y = y - jnp.linalg.solve(jax.jacobian(slope)(y), slope(y))
            return y

        expected = jax.jit(jax.grad(lambda x: self.outer(solved(x))))(X)
        np.testing.assert_allclose(found, expected, rtol=1e-8)

    def test_every_inner_loop_starts_anew_with_a_fresh_optimizer(self):
        engine = self.engine(mlox.Unrolled())
        step = engine.compile(donate=False)
        state, _ = step(engine.init(), NO_DATA)
        after, _ = step(state, NO_DATA)
        expected = self.adapted(state["up"].params)
        np.testing.assert_allclose(after["low"].params, expected, rtol=1e-12)
        assert after["low"].step == 6

    def test_the_nearest_problem_above_ends_an_inner_loop(self):
        def problem(name, steps, **parts):
            return mlox.Problem.create(
                name=name,
                params=jnp.zeros(()),
                tx=optax.sgd(1.0),
                loss_fn=falling,
                unroll_steps=steps,
                **parts,
            )

        reset = lambda params, ctx: jnp.full_like(params, 10.0)
        engine = mlox.Engine(
            [problem("t", 1), problem("p", 2), problem("c", 3, reset=reset)],
            {"t": ["p"], "p": ["c"]},
            {"c": ["p"], "p": ["t"]},
        )
        state, metrics = engine.compile()(engine.init(), dict.fromkeys("tpc"))
        np.testing.assert_array_equal(
            metrics["c/loss"], [-10.0, -11.0, -12.0, -10.0, -11.0, -12.0]
        )
        assert state["c"].params == 13.0
        assert state["p"].params == 2.0

    def test_no_inner_loop(self):
        message = "problem 'x' has reset= but no inner loop"
        problem = mlox.Problem.create(
            name="x",
            params=X,
            tx=optax.sgd(0.1),
            loss_fn=lambda params, batch, ctx: params.sum(),
            reset=lambda params, ctx: params,
        )
        assert_raises(message, lambda: mlox.Engine([problem]))

    @pytest.mark.parametrize("option", ["reset", "project"])
    def test_other_params(self, option):
        other = lambda *args: jnp.zeros(2)
        engine = self.engine(mlox.Unrolled(), **{option: other})
        message = r"does not fit params: it is float64\[2\], expected float64\[3\]"
        with pytest.raises(ValueError, match=rf"'low': {option}\(.*\) {message}"):
            engine.step(engine.init(), NO_DATA)


class TestProject:
    @staticmethod
    def clipped(params):
        return jax.tree.map(lambda x: jnp.clip(x, 0.0, 0.1), params)

    def test_a_step_ends_in_the_set_and_is_differentiated(self):
        engine = two(mlox.Unrolled(), project=self.clipped)
        state, _ = jax.jit(engine.step)(engine.init(), NO_DATA)

        def ran(x):
            v = flat(WEIGHTS)
            for _ in range(3):
                v = jnp.clip(v - 0.3 * (A @ v - x), 0.0, 0.1)
            return v

        np.testing.assert_allclose(flat(state["low"].params), ran(X), rtol=1e-12)
        expected = jax.grad(lambda x: jnp.sum((ran(x) - 1) ** 2) + x @ x)(X)
        np.testing.assert_allclose(hypergradient(engine), expected, rtol=1e-12)


class TestSample:
    """A batch that is made inside of the step."""

    @staticmethod
    def sample(params, ctx):
        return {"x": params + jax.random.normal(ctx.rng, (4,)), "at": ctx.step}

    @staticmethod
    def loss(params, batch, ctx):
        noise = jax.random.normal(ctx.rng, (4,))
        return {
            "loss": jnp.mean((params - batch["x"] * ctx.up.params) ** 2),
            "at": batch["at"],
            "same": jnp.mean(jnp.abs(batch["x"] - params - noise)),
        }

    def engine(self, method, **parts):
        parts = {"sample": self.sample, "rng": 0, "tx": optax.sgd(0.1), **parts}
        return two(
            method,
            up=lambda params, batch, ctx: (ctx.low.params - 1) ** 2,
            low=self.loss,
            params=jnp.array(0.2),
            x=jnp.array(0.3),
            **parts,
        )

    def by_hand(self, x, steps):
        """Return the parameters and the last batch."""
        key = jax.random.fold_in(jax.random.key(0), 2**32 - 2)
        params, batch = jnp.array(0.2), None
        for i in range(steps):
            noise = jax.random.normal(jax.random.fold_in(key, i), (4,))
            batch = jax.lax.stop_gradient(params + noise)
            params = params - 0.2 * jnp.mean(params - batch * x)
        return params, batch

    def test_every_step_has_a_batch_of_its_own(self):
        engine = self.engine(mlox.Unrolled())
        state, metrics = jax.jit(engine.step)(engine.init(), NO_DATA)
        expected, _ = self.by_hand(0.3, 3)
        np.testing.assert_allclose(state["low"].params, expected, rtol=1e-12)
        np.testing.assert_array_equal(metrics["low/at"], [0, 1, 2])
        assert metrics["low/same"].min() > 0.1, "the loss draws from another stream"

    def test_unrolled_takes_batches_as_constants(self):
        expected = jax.grad(lambda x: (self.by_hand(x, 3)[0] - 1) ** 2)(0.3)
        found = hypergradient(self.engine(mlox.Unrolled()))
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_implicit_takes_the_last_batch(self):
        params, batch = self.by_hand(0.3, 3)
        # The Hessian is 2, d residual/dx = -2 mean(batch).
        expected = 2 * (params - 1) * batch.mean()
        found = hypergradient(self.engine(mlox.Implicit(mlox.Dense())))
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_runs_in_many_cycles_of_one_dispatch(self):
        engine = self.engine(mlox.Implicit())
        options = {"train_iters": 6, "loggers": ()}
        ends = [
            engine.run(engine.init(), cycles_per_dispatch=n, **options)[0]["low"].params
            for n in (1, 3)
        ]
        np.testing.assert_allclose(*ends, rtol=1e-12)

    def test_data_beside_it(self):
        engine = self.engine(None)
        message = "batches['low'] is float64[3]; expected None, since 'low' samples"
        batches = {"up": None, "low": jnp.zeros(3)}
        assert_raises(message, lambda: engine.step(engine.init(), batches))

    def test_no_arrays(self):
        engine = self.engine(None, sample=lambda params, ctx: {"x": "a word"})
        message = "problem 'low': sample returned a leaf that is not an array: "
        assert_raises(message, lambda: engine.step(engine.init(), NO_DATA))


class TestParts:
    """Parts of the parameters that are frozen, or constants seen from above."""

    METHODS = (
        mlox.Implicit(mlox.Dense()),
        mlox.Implicit(mlox.CG()),
        mlox.Implicit(mlox.GMRES()),
        mlox.Implicit(mlox.Neumann(200, 0.2)),
        mlox.Unrolled(),
    )

    @staticmethod
    def answer_of_a(x, b):
        return jnp.linalg.solve(A[:2, :2], x[:2] - A[:2, 2:] @ b)

    def objective(self, x, b):
        v = jnp.concatenate([self.answer_of_a(x, b), b])
        return jnp.sum((v - 1) ** 2) + x @ x

    @pytest.mark.parametrize("method", METHODS, ids=repr)
    def test_what_is_frozen_is_no_unknown(self, method):
        engine = two(method, trainable=only_a, unroll_steps=80)
        expected = jax.grad(lambda x: self.objective(x, WEIGHTS["b"]))(X)
        np.testing.assert_allclose(hypergradient(engine), expected, rtol=1e-8)

    @pytest.mark.parametrize("method", METHODS, ids=repr)
    def test_what_uppers_take_as_a_constant(self, method):
        engine = two(method, meta_trainable=only_a, unroll_steps=200)
        b = jnp.linalg.solve(A, X)[2:]
        expected = jax.grad(lambda x: self.objective(x, b))(X)
        np.testing.assert_allclose(hypergradient(engine), expected, rtol=1e-8)

    def test_three_levels_with_frozen_parts(self):
        """As without them: what is frozen may as well be part of the losses."""

        def whole(part):
            return flat({**WEIGHTS, **part})

        def top(params, batch, ctx):
            return jnp.sum((whole(ctx.low.params) - 1) ** 2) + jnp.sum(params**2)

        def middle(params, batch, ctx):
            v, answer = whole(params), whole(ctx.bottom.params)
            return 0.5 * v @ A @ v + (answer - 1) @ (answer - 1) - ctx.up.params @ v

        def bottom(params, batch, ctx):
            v = whole(params)
            cost = 0.5 * v @ A @ v - whole(ctx.low.params) @ v
            return cost + 0.25 * jnp.sum(v[:2] ** 4)

        def found(params, **parts):
            parts = {"tx": optax.sgd(0.0), "params": params, **parts}
            method = mlox.Implicit(mlox.Dense())
            create = mlox.Problem.create
            engine = mlox.Engine(
                [
                    create(name="up", params=X, tx=optax.sgd(0.0), loss_fn=top),
                    create(name="low", loss_fn=middle, method=method, **parts),
                    create(name="bottom", loss_fn=bottom, method=method, **parts),
                ],
                {"up": ["low"], "low": ["bottom"]},
                {"bottom": ["low"], "low": ["up"]},
            )
            batches = dict.fromkeys(engine.names)
            return engine.hypergradient(engine.init(), batches, "up")[1]

        a = {"a": jnp.array([0.3, 0.2])}
        np.testing.assert_allclose(
            found({**WEIGHTS, **a}, trainable=only_a), found(a), rtol=1e-12
        )

    def test_what_is_frozen_stays_and_has_no_optimizer_state(self):
        tx = optax.adamw(0.1, weight_decay=1.0)
        engine = two(trainable=only_a, tx=tx)
        state, _ = jax.jit(engine.step)(engine.init(), NO_DATA)
        assert state["low"].params["b"] == 1.0
        sizes = [x.size for x in jax.tree.leaves(state["low"].opt_state)]
        assert sum(sizes) == 2 * 2 + 1  # two moments of "a" and a count

    def test_no_new_program_for_equal_parts(self):
        engines = [two(trainable=only_a, tx=TestReset.TX) for _ in range(2)]
        optimizers = [optimizer_of(engine.problems[1]) for engine in engines]
        assert optimizers[0] == optimizers[1]

    def test_only_the_head_adapts(self):
        """ANIL: what is frozen in the inner loop is learned by the upper."""
        start = lambda params, ctx: {"a": ctx.up.params[:2], "b": ctx.up.params[2:]}
        inner = lambda params, batch, ctx: 0.5 * flat(params) @ A @ flat(params)
        outer = lambda params, batch, ctx: jnp.sum((flat(ctx.low.params) - 1) ** 2)
        engine = two(
            mlox.Unrolled(), up=outer, low=inner, reset=start, trainable=only_a
        )

        def ran(x):
            for _ in range(3):
                x = x - 0.3 * jnp.array([1.0, 1.0, 0.0]) * (A @ x)
            return jnp.sum((x - 1) ** 2)

        np.testing.assert_allclose(hypergradient(engine), jax.grad(ran)(X), rtol=1e-12)

    @pytest.mark.parametrize("option", ["trainable", "meta_trainable"])
    @pytest.mark.parametrize(
        ("found", "message"),
        [
            (None, " is False everywhere, so nothing is left."),
            ({"a": 1, "b": 0}, "['a'] is 1; expected a bool"),
            ({"a": True}, " is {'a': True}, which does not fit params, {'a': "),
            (False, " is False everywhere, so nothing is left."),
        ],
    )
    def test_masks_that_do_not_fit(self, option, found, message):
        mask = {
            option: lambda params: {"a": False, "b": False} if found is None else found
        }
        assert_raises(f"problem 'low': {option}(params){message}", lambda: two(**mask))


class TestWarmup:
    def test_those_above_wait(self):
        engine = two(warmup_steps=6, tx=optax.sgd(0.1))
        plain = two(tx=optax.sgd(0.1))
        step = engine.compile(donate=False)
        state = engine.init()
        for cycle in range(3):
            state, metrics = step(state, NO_DATA)
            assert state["low"].step == 3 * (cycle + 1)
            assert state["up"].step == int(cycle == 2)
            assert np.isfinite(metrics["up/loss"]).all()
            assert (state["up"].params == X).all() == (cycle < 2)
        before = plain.init()
        v = flat(WEIGHTS)
        for _ in range(6):
            v = v - 0.1 * (A @ v - X)
        before["low"] = before["low"].replace(params={"a": v[:2], "b": v[2:]})
        after, _ = plain.step(before, NO_DATA)
        np.testing.assert_allclose(state["up"].params, after["up"].params, rtol=1e-12)

    def test_problems_in_the_middle_wait_within_loops(self):
        def problem(name, **parts):
            return mlox.Problem.create(
                name=name,
                params=jnp.zeros(()),
                tx=optax.sgd(1.0),
                loss_fn=falling,
                **parts,
            )

        bottom = problem("c", unroll_steps=2, warmup_steps=8)
        engine = mlox.Engine(
            [problem("t"), problem("p", unroll_steps=3), bottom],
            {"t": ["p"], "p": ["c"]},
            {"c": ["p"], "p": ["t"]},
        )
        step = engine.compile(donate=False)
        state, counts = engine.init(), []
        for _ in range(3):
            state, _ = step(state, dict.fromkeys("tpc"))
            counts.append([int(state[n].step) for n in "tpc"])
            assert [float(state[n].params) for n in "tpc"] == counts[-1]
        # p steps after 2, 4, ... steps of c: first after 10. t steps at 6, 12, 18.
        assert counts == [[0, 0, 6], [1, 2, 12], [2, 5, 18]]


class TestRollBack:
    """Look ahead, update the upper, go back, and make one step for good."""

    @staticmethod
    def lower(v, x):
        return v - 0.3 * (A @ v - x)

    def ahead(self, v, x):
        for _ in range(3):
            v = self.lower(v, x)
        return v

    def test_two_levels(self):
        engine = two(mlox.Unrolled(), engine={"roll_back": True})
        state, metrics = jax.jit(engine.step)(engine.init(), NO_DATA)
        v = flat(WEIGHTS)
        outer = lambda x: jnp.sum((self.ahead(v, x) - 1) ** 2) + x @ x
        x = X - 0.1 * jax.grad(outer)(X)
        np.testing.assert_allclose(state["up"].params, x, rtol=1e-12)
        np.testing.assert_allclose(
            flat(state["low"].params), self.lower(v, x), rtol=1e-12
        )
        assert state["low"].step == 1
        assert metrics["low/loss"].shape == (3,)

    def test_the_step_for_good_starts_at_the_reset(self):
        """Under the upper that has stepped, and where the next window starts."""
        engine = two(
            mlox.Unrolled(),
            engine={"roll_back": True},
            reset=lambda params, ctx: jax.tree.map(
                lambda w: w * jnp.sum(ctx.up.params), params
            ),
        )
        state, _ = jax.jit(engine.step)(engine.init(), NO_DATA)
        v = flat(WEIGHTS)
        outer = lambda x: jnp.sum((self.ahead(v * x.sum(), x) - 1) ** 2) + x @ x
        x = X - 0.1 * jax.grad(outer)(X)
        np.testing.assert_allclose(state["up"].params, x, rtol=1e-12)
        np.testing.assert_allclose(
            flat(state["low"].params), self.lower(v * x.sum(), x), rtol=1e-12
        )

    def test_the_step_for_good_takes_the_last_batch(self):
        loss = lambda params, batch, ctx: (batch - 0 * ctx.up.params) * params
        engine = two(
            up=lambda params, batch, ctx: params**2 + 0 * ctx.low.params,
            low=loss,
            params=jnp.array(0.0),
            x=jnp.array(1.0),
            tx=optax.sgd(1.0),
            engine={"roll_back": True},
        )
        batches = {"up": None, "low": jnp.array([1.0, 10.0, 100.0])}
        state, _ = engine.step(engine.init(), batches)
        assert state["low"].params == -100.0

    def test_three_levels_with_loops_in_loops(self):
        """As a program in plain Python, where every level rolls back."""

        def problem(name, loss_fn, params, **parts):
            return mlox.Problem.create(
                name=name, params=params, tx=optax.sgd(0.1), loss_fn=loss_fn, **parts
            )

        bottom = lambda c, p: 0.5 * jnp.sum((c - p) ** 2) + 0.25 * jnp.sum(c**4)
        middle = lambda p, c, t: jnp.sum((c - 1) ** 2) + jnp.sum((p - t) ** 2)
        top = lambda t, p: jnp.sum((p + 1) ** 2) + jnp.sum(t**2)
        engine = mlox.Engine(
            [
                problem("t", lambda t, _, ctx: top(t, ctx.p.params), 0.5 * X),
                problem(
                    "p",
                    lambda p, _, ctx: middle(p, ctx.c.params, ctx.t.params),
                    X,
                    unroll_steps=2,
                    method=mlox.Unrolled(),
                ),
                problem(
                    "c",
                    lambda c, _, ctx: bottom(c, ctx.p.params),
                    2 * X,
                    unroll_steps=3,
                    method=mlox.Unrolled(),
                ),
            ],
            {"t": ["p"], "p": ["c"]},
            {"c": ["p"], "p": ["t"]},
            roll_back=True,
        )

        def step_c(c, p):
            return c - 0.1 * jax.grad(bottom)(c, p)

        def round_p(p, c, t):
            def outer(p):
                ahead = c
                for _ in range(3):
                    ahead = step_c(ahead, p)
                return middle(p, ahead, t)

            p = p - 0.1 * jax.grad(outer)(p)
            return p, step_c(c, p)

        def cycle(t, p, c):
            def outer(t):
                ahead = p, c
                for _ in range(2):
                    ahead = round_p(*ahead, t)
                return top(t, ahead[0])

            t = t - 0.1 * jax.grad(outer)(t)
            return t, *round_p(p, c, t)

        state, expected = engine.init(), (0.5 * X, X, 2 * X)
        step = engine.compile(donate=False)
        for _ in range(2):
            state, _ = step(state, dict.fromkeys("tpc"))
            expected = cycle(*expected)
        for name, params in zip("tpc", expected, strict=True):
            np.testing.assert_allclose(state[name].params, params, rtol=1e-12)
        assert [int(state[n].step) for n in "tpc"] == [2, 2, 2]

    def test_nothing_goes_back_while_the_upper_waits(self):
        engine = two(warmup_steps=3, engine={"roll_back": True})
        step = engine.compile(donate=False)
        state, _ = step(engine.init(), NO_DATA)
        ahead = self.ahead(flat(WEIGHTS), X)
        np.testing.assert_allclose(flat(state["low"].params), ahead, rtol=1e-12)
        assert state["low"].step == 3
        state, _ = step(state, NO_DATA)
        expected = self.lower(ahead, state["up"].params)
        np.testing.assert_allclose(flat(state["low"].params), expected, rtol=1e-12)
        assert state["low"].step == 4
        assert state["up"].step == 1

    def test_problems_that_are_not_below_stay(self):
        alone = mlox.Problem.create(
            name="alone",
            params=jnp.zeros(()),
            tx=optax.sgd(1.0),
            loss_fn=lambda params, batch, ctx: -params,
        )
        ahead = two(engine={"roll_back": True})
        engine = mlox.Engine([*ahead.problems, alone], *EDGES, roll_back=True)
        state, _ = engine.step(engine.init(), {**NO_DATA, "alone": None})
        assert state["alone"].params == 3.0
        assert state["alone"].step == 3
        assert state["low"].step == 1


class TestNotes:
    @pytest.mark.parametrize("option", ["sample", "reset", "project"])
    def test_an_error_names_the_problem_and_its_function(self, option):
        def fails(*args):
            raise KeyError("scale")

        engine = two(mlox.Unrolled(), **{option: fails})
        with pytest.raises(KeyError) as caught:
            jax.eval_shape(engine.step, engine.init(), NO_DATA)
        (note, *_) = caught.value.__notes__
        called = "called with params={'a': "
        assert f"occurred in {option} of problem 'low', {called}" in note

    def test_a_read_without_an_edge_is_said_of_the_problem(self):
        engine = two(sample=lambda params, ctx: ctx.noise.params)
        with pytest.raises(
            ValueError, match=r"problem 'low' reads ctx\['noise'\]"
        ) as e:
            jax.eval_shape(engine.step, engine.init(), NO_DATA)
        assert e.value.__notes__[0].startswith(
            "The error occurred in sample of problem 'low'"
        )

    @pytest.mark.parametrize("option", ["reset", "project"])
    def test_what_is_no_array(self, option):
        engine = two(mlox.Unrolled(), **{option: lambda *args: "start"})
        with pytest.raises(ValueError, match=rf"'low': {option}\(.*\) is 'start'"):
            engine.step(engine.init(), NO_DATA)
