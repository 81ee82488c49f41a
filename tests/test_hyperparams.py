"""Optimizers that read uppers: differentiated by `Unrolled`."""

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

# JAX cannot differentiate the power of a beta to a count if dtypes are not promoted.
standard = jax.numpy_dtype_promotion("standard")

A = jnp.array([[2.0, 0.3], [0.3, 1.0]])
START = jnp.array([1.0, -2.0])
NO_DATA = {"up": None, "fit": None}
ADAM = optax.inject_hyperparams(optax.adam)
ADAMW = optax.inject_hyperparams(optax.adamw)
BETAS = ("b1", "b2", "eps", "eps_root")
PLAIN_BETAS = optax.inject_hyperparams(optax.adam, static_args=BETAS)
SGD = optax.inject_hyperparams(optax.sgd)


def fit_loss(params, batch, ctx):
    a = A.astype(params.dtype)
    return 0.5 * params @ a @ params + 0.1 * jnp.sum(params**4) - jnp.sum(params)


def judge(params, batch, ctx):
    return jnp.sum((ctx.fit.params - 0.3) ** 2)


def read_rate(ctx):
    return {"learning_rate": jnp.exp(ctx.up.params[ctx.inner_step])}


def pair(tx, hyperparams, upper, steps=3, up=None, engine=None, **fit):
    """Make an engine of a lower whose optimizer reads an upper."""
    up = {"params": upper, "tx": optax.sgd(0.1), "loss_fn": judge, **(up or {})}
    fit = {
        "params": START,
        "loss_fn": fit_loss,
        "method": mlox.Unrolled(),
        "unroll_steps": steps,
        **fit,
    }
    problems = [
        mlox.Problem.create(name="up", **up),
        mlox.Problem.create(name="fit", tx=tx, hyperparams=hyperparams, **fit),
    ]
    edges = {"up": ["fit"]}, {"fit": ["up"]}
    return mlox.Engine(problems, *edges, **(engine or {}))


def differences(engine, state, name, entries, batches=NO_DATA, step=1e-5):
    """Return central differences of a loss along some entries of a flat upper."""
    flat, unflatten = jax.flatten_util.ravel_pytree(state[name].params)

    def loss(x):
        moved = {**state, name: state[name].replace(params=unflatten(x))}
        return engine.hypergradient(moved, batches, name)[0]

    e = jnp.eye(len(flat))[jnp.asarray(entries)] * step
    return np.array([(loss(flat + d) - loss(flat - d)) / (2 * step) for d in e])


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


@standard
def test_schedule_decay_and_beta_are_differentiated_exactly_in_every_window():
    """As central differences are, of 120 steps of AdamW; also in the second window."""

    def read(ctx):
        up = ctx.up.params
        return {
            "learning_rate": jnp.exp(up["rates"][ctx.inner_step]),
            "weight_decay": up["decay"],
            "b1": up["beta"],
        }

    upper = {
        "beta": jnp.array(0.9),
        "decay": jnp.array(0.1),
        "rates": jnp.full(120, jnp.log(1e-2)),
    }
    engine = pair(ADAMW(1e-3, eps_root=1e-16), read, upper, steps=120)
    state = engine.init()
    for step in (0, 120):
        state["fit"] = state["fit"].replace(step=jnp.int32(step))
        _, gradient = engine.hypergradient(state, NO_DATA, "up")
        gradient = flat(gradient)
        assert (gradient != 0).all()
        entries = [0, 1, 2 + 0, 2 + 60, 2 + 119]
        expected = differences(engine, state, "up", entries)
        np.testing.assert_allclose(gradient[jnp.array(entries)], expected, rtol=1e-6)


def plain_steps(tx, steps, dtype):
    """Return what a loop by hand leads to."""
    params = START.astype(dtype)

    def step(carry, _):
        params, opt_state = carry
        grads = jax.grad(fit_loss)(params, None, None)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    run = lambda p: jax.lax.scan(step, (p, tx.init(p)), None, length=steps)[0][0]
    with standard:
        return jax.jit(run)(params)


@pytest.mark.parametrize(
    ("tx", "plain", "dtype"),
    [
        (ADAM(1e-3), optax.adam(1e-2), jnp.float64),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (ADAMW(1e-3), optax.adamw(1e-2), jnp.float64),
                (SGD(1e-3), optax.sgd(1e-2), jnp.float64),
                (SGD(1e-3, momentum=0.9), optax.sgd(1e-2, momentum=0.9), jnp.float32),
                # 1 - b1 of an array in float32 is not that of Python numbers.
                (PLAIN_BETAS(1e-3), optax.adam(1e-2), jnp.float32),
            ]
        ),
    ],
)
def test_steps_are_the_plain_optimizers_bit_for_bit(tx, plain, dtype):
    engine = pair(
        tx,
        lambda ctx: {"learning_rate": ctx.up.params},
        jnp.asarray(1e-2, dtype),
        steps=20,
        params=START.astype(dtype),
        method=mlox.Detached(),
    )
    state, _ = jax.jit(engine.step)(engine.init(), NO_DATA)
    np.testing.assert_array_equal(state["fit"].params, plain_steps(plain, 20, dtype))


TWO = {"body": START, "head": 2 * START}


def two_losses(params, batch, ctx):
    return fit_loss(params["body"] + 0.1 * params["head"], batch, ctx) + jnp.sum(
        params["head"] ** 2
    )


def judge_two(params, batch, ctx):
    return jnp.sum((ctx.fit.params["body"] - 0.3) ** 2) + jnp.sum(
        ctx.fit.params["head"] ** 3
    )


def by_label(**txs):
    return optax.partition(txs, {"body": "body", "head": "head"})


# For each way to place an optimizer: tx, what sets its rates, and the rates of the two
# leaves, from an upper x of two entries.
PLACES = {
    "in a chain": (
        optax.chain(optax.clip(1e3), SGD(1.0)),
        lambda ctx: {"learning_rate": ctx.up.params[0]},
        lambda x: (x[0], x[0]),
    ),
    "two in a chain of names": (
        optax.named_chain(("first", SGD(-1.0)), ("second", SGD(1.0))),
        lambda ctx: {"second": {"learning_rate": ctx.up.params[0]}},
        lambda x: (x[0], x[0]),
    ),
    "in groups": (
        by_label(body=SGD(1.0), head=optax.chain(SGD(1.0))),
        lambda ctx: {
            "body": {"learning_rate": ctx.up.params[0]},
            "head": {"learning_rate": ctx.up.params[1]},
        },
        lambda x: (x[0], x[1]),
    ),
    "the only one of its name": (
        by_label(body=SGD(1.0), head=optax.sgd(0.02)),
        lambda ctx: {"learning_rate": ctx.up.params[0]},
        lambda x: (x[0], 0.02),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_finds_the_optimizer(place, trainable):
    """In the loop and in its derivative, as in a loop by hand."""
    tx, read, rates = PLACES[place]
    mask = lambda params: {"body": True, "head": not trainable}
    if trainable and place in ("in groups", "the only one of its name"):
        mask = None
    x = jnp.array([0.05, 0.03])

    def ran(x):
        params = TWO
        for _ in range(3):
            grads = jax.grad(two_losses)(params, None, None)
            at = dict(zip(("body", "head"), rates(x), strict=True))
            if trainable and mask is not None:
                at["head"] = 0.0
            params = {n: params[n] - at[n] * grads[n] for n in params}
        return params

    def loss(x):
        ctx = mlox.Context(
            "up", {"fit": mlox.Neighbour(ran(x), None, None)}, None, 0, 0
        )
        return judge_two(x, None, ctx)

    up = {"loss_fn": judge_two, "tx": optax.sgd(0.0)}
    engine = pair(tx, read, x, up=up, params=TWO, loss_fn=two_losses, trainable=mask)
    state, _ = jax.jit(engine.step)(engine.init(), NO_DATA)
    for n, leaf in ran(x).items():
        np.testing.assert_allclose(state["fit"].params[n], leaf, rtol=1e-12)
    _, gradient = engine.hypergradient(engine.init(), NO_DATA, "up")
    np.testing.assert_allclose(gradient, jax.grad(loss)(x), rtol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [None, 1])
def test_tasks_have_rates_of_their_own(at_once):
    def read(ctx):
        return {"learning_rate": ctx.up.params[ctx.task_index, ctx.inner_step]}

    rates = jnp.array([[0.05, 0.04], [0.03, 0.02], [0.01, 0.0]])
    up = {"loss_fn": lambda p, b, ctx: jnp.sum((ctx.fit.params - 0.3) ** 2)}
    engine = pair(SGD(1.0), read, rates, steps=2, up=up, tasks=3, tasks_at_once=at_once)

    def loss(rates):
        total = 0.0
        for task in rates:
            params = START
            for rate in task:
                params = params - rate * jax.grad(fit_loss)(params, None, None)
            total += jnp.sum((params - 0.3) ** 2)
        return total

    _, gradient = engine.hypergradient(engine.init(), NO_DATA, "up")
    np.testing.assert_allclose(gradient, jax.grad(loss)(rates), rtol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("middle", [mlox.Unrolled(), mlox.Implicit()])
def test_derivatives_of_derivatives_are_exact(middle):
    """A rate that a middle problem learns, below another problem: three levels."""

    def regularized(params, batch, ctx):
        move = jnp.sum((params - ctx.top.params) ** 2)
        return jnp.sum((ctx.fit.params - 0.3) ** 2) + move

    def problem(name, **parts):
        parts = {"tx": optax.sgd(0.1), **parts}
        return mlox.Problem.create(name=name, **parts)

    def judge_both(params, batch, ctx):
        return jnp.sum(ctx.fit.params * ctx.up.params) + jnp.sum(ctx.up.params**2)

    problems = [
        problem("top", params=jnp.array([0.2, 0.1]), loss_fn=judge_both),
        problem(
            "up",
            params=jnp.array([0.1, 0.2]),
            loss_fn=regularized,
            method=middle,
            unroll_steps=100,
        ),
        problem(
            "fit",
            params=START,
            loss_fn=fit_loss,
            tx=SGD(1.0, momentum=0.5),
            hyperparams=lambda ctx: {
                "learning_rate": 0.3 * jnp.tanh(ctx.up.params[ctx.inner_step])
            },
            reset=lambda params, ctx: START,
            method=mlox.Unrolled(),
            unroll_steps=2,
        ),
    ]
    engine = mlox.Engine(
        problems,
        {"top": ["up"], "up": ["fit"]},
        {"fit": ["up", "top"], "up": ["top"]},
    )
    state, batches = engine.init(), dict.fromkeys(engine.names)
    _, gradient = engine.hypergradient(state, batches, "top")
    expected = differences(engine, state, "top", [0, 1], batches)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def constant(ctx):
    return {"learning_rate": ctx.up.params[0]}


def told(build):
    """Return what is told while something is built, and its step is traced."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = build()
        jax.eval_shape(engine.step, engine.init(), NO_DATA)
    return [str(warning.message) for warning in caught]


RATES = jnp.array([0.1, 0.2, 0.3])


def test_nothing_is_told_of_an_upper_that_steers_alone():
    engine = pair(SGD(1.0), constant, RATES)
    assert told(lambda: engine) == []
    assert "hyperparams: learning_rate, from up" in engine.explain()
    assert "hyperparams=constant" in repr(engine.problems[1])
    assert told(lambda: pair(SGD(1.0), constant, RATES, method=mlox.Detached())) == []


@pytest.mark.slow
def test_forward_mode_differentiates_steps_too():
    added = lambda params, batch, ctx: (
        fit_loss(params, batch, ctx) + jnp.sum(ctx.up.params)
    )
    engines = [
        pair(SGD(1.0), constant, RATES, method=method, loss_fn=loss)
        for method in (mlox.Unrolled(), mlox.Forward())
        for loss in (fit_loss, added)
    ]
    assert [told(lambda e=e: e) for e in engines] == [[]] * 4
    found = [e.hypergradient(e.init(), NO_DATA, "up")[1] for e in engines]
    np.testing.assert_allclose(found[0], found[2], rtol=1e-12)
    assert found[0][0] != 0


@pytest.mark.parametrize(
    "method",
    [mlox.Implicit(), mlox.FiniteDifference(), mlox.FixedPoint(), mlox.SAMA()],
)
def test_methods_that_do_not_differentiate_steps_are_told(method):
    (text,) = told(lambda: pair(SGD(1.0), constant, RATES, method=method))
    assert f"optimizer of 'fit' reads 'up' by hyperparams=, but {method}" in text
    assert "u2l={'up': ['fit']}" in text
    assert "mlox.Unrolled()" in text


def test_a_derivative_that_is_cut_is_told():
    cut = lambda ctx: {"learning_rate": jax.lax.stop_gradient(ctx.up.params[0])}
    (text,) = told(lambda: pair(SGD(1.0), cut, RATES))
    assert "loss of 'fit' does not read the parameters of 'up', and its opt" in text


@pytest.mark.slow
@pytest.mark.parametrize("method", [mlox.Unrolled(), mlox.Implicit()])
def test_check_knows_of_the_optimizer(method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = pair(SGD(0.1), constant, RATES, method=method, steps=40)
        report = mlox.check(engine, engine.init(), NO_DATA, "up")
    remedies = [finding.remedy for finding in report.findings]
    if isinstance(method, mlox.Unrolled):
        assert remedies == []
    else:
        assert remedies == ["Pass method=mlox.Unrolled() to 'fit'."]


@pytest.mark.slow
def test_a_look_ahead_starts_the_schedule_again():
    engine = pair(SGD(1.0), read_rate, jnp.log(RATES), engine={"roll_back": True})
    state, _ = jax.jit(engine.step)(engine.init(), NO_DATA)
    rate = jnp.exp(state["up"].params[0])
    expected = START - rate * jax.grad(fit_loss)(START, None, None)
    np.testing.assert_allclose(state["fit"].params, expected, rtol=1e-12)


@pytest.mark.slow
def test_a_run_goes_on_from_a_checkpoint(tmp_path):
    def build():
        return pair(ADAM(1e-3, eps_root=1e-8), read_rate, jnp.log(RATES))

    options = {"progress": False, "loggers": (), "cycles_per_dispatch": 2}
    whole, _ = build().run(build().init(), train_iters=8, **options)
    engine = build()
    options["checkpoint"] = mlox.Checkpoint(tmp_path, every=2)
    engine.run(engine.init(), train_iters=4, **options)
    resumed, _ = engine.run(engine.init(), train_iters=8, resume=True, **options)
    chex.assert_trees_all_equal(
        jax.tree.leaves(resumed["fit"]), jax.tree.leaves(whole["fit"])
    )


@pytest.mark.slow
@standard
def test_hypergradients_can_be_differentiated_again():
    engine = pair(ADAM(1e-3, eps_root=1e-8), read_rate, jnp.array([-2.0, -3.0, -2.5]))
    state = engine.init()

    def gradient(x):
        moved = {**state, "up": state["up"].replace(params=x)}
        return engine.hypergradient(moved, NO_DATA, "up")[1]

    x, h = state["up"].params, 1e-5
    rows = [(gradient(x + d) - gradient(x - d)) / (2 * h) for d in h * jnp.eye(len(x))]
    for jacobian in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(jacobian(gradient)(x), jnp.stack(rows), rtol=1e-6)


def test_another_optimizer_without_numbers_is_refused():
    """`replace` does not look at the optimizer; the engine does."""
    injected = optax.inject_hyperparams(optax.sgd)(0.1)
    engine = pair(injected, read_rate, jnp.zeros(3))
    up, fit = engine.problems
    plain = optax.sgd(0.1)
    fit = fit.replace(tx=plain, opt_state=plain.init(fit.params))
    with pytest.raises(ValueError, match="tx holds no numbers that can be set"):
        mlox.Engine([up, fit], {"up": ["fit"]}, {"fit": ["up"]})
