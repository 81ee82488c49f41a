"""Unrolled answers with a mutable state that somebody above reads: it moves, too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

from .test_laws import quick, without_data

X = jnp.array([0.3, -0.2])
TRACE = {"sum": jnp.array([0.1, 0.4]), "count": jnp.int32(0)}


def lower_loss(params, batch, ctx):
    """Return a loss whose state runs after what it has seen."""
    del batch
    total = 0.7 * ctx.model_state["sum"] + params**2 * ctx.x.params
    state = {"sum": total, "count": ctx.model_state["count"] + 1}
    loss = jnp.sum((params - ctx.x.params) ** 2 + 0.1 * params**4)
    return {"loss": loss + 0.2 * jnp.sum(params * total), "model_state": state}


def read(ctx):
    return jnp.sum(ctx.y.model_state["sum"] ** 2 + jnp.sin(ctx.y.params))


def make(name, loss_fn, **options):
    options = {"params": X, "tx": optax.sgd(0.1), **options}
    return mlox.Problem.create(name=name, loss_fn=loss_fn, **options)


def pair(method, upper=None, **options):
    """Make an upper that reads what its unrolled lower has summed up."""
    options = {"unroll_steps": 4, "model_state": TRACE, **options}
    x = make("x", upper or (lambda x, batch, ctx: read(ctx) + jnp.sum(x**3)))
    y = make("y", lower_loss, method=method, params=2 * X, **options)
    return mlox.Engine([x, y], u2l={"x": ["y"]}, l2u={"y": ["x"]})


def differences(engine, name):
    """Take central differences of the loss that the program itself returns."""
    state = engine.init()
    leaf = state[name].params

    def loss(x):
        there = {**state, name: state[name].replace(params=x)}
        return jnp.sum(engine.hypergradient(there, without_data(engine), name)[0])

    shifts = 1e-5 * jnp.eye(leaf.size).reshape(-1, *leaf.shape)
    values = quick(jax.vmap(lambda h: loss(leaf + h) - loss(leaf - h)))(shifts)
    return values.reshape(leaf.shape) / 2e-5


def hypergradient(engine, name="x"):
    batches = without_data(engine)
    return quick(lambda s: engine.hypergradient(s, batches, name)[1])(engine.init())


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["segments", "none"])
def test_hypergradient_flows_through_a_state_that_the_upper_reads(checkpoint):
    engine = pair(mlox.Unrolled(checkpoint=checkpoint))
    found, expected = hypergradient(engine), differences(engine, "x")
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    unread = pair(mlox.Unrolled(), lambda x, batch, ctx: jnp.sum(jnp.sin(ctx.y.params)))
    assert np.abs(found - hypergradient(unread)).max() > 0.1


def test_a_state_that_nobody_reads_is_no_part_of_the_program():
    """Nor is one that only its own loss reads, or of which only integers are read."""

    def stateful(upper):
        engine = pair(mlox.Unrolled(), upper)
        return engine.traced.prepare(engine.init(), without_data(engine)).plan.stateful

    count = lambda ctx: ctx.y.model_state["count"].astype(float)
    assert stateful(None) == {"y"}
    assert not stateful(lambda x, batch, ctx: jnp.sum(ctx.y.params))
    assert not stateful(lambda x, batch, ctx: jnp.sum(ctx.y.params) * count(ctx))


def run_by_hand(x, y, total, steps, last=None):
    """Run the lower, with its first steps as constants."""
    for step in range(steps):
        if last is not None and step == steps - last:
            y, total = jax.lax.stop_gradient((y, total))

        def loss(y, before=total):
            after = 0.7 * before + y**2 * x
            cost = jnp.sum((y - x) ** 2 + 0.1 * y**4) + 0.2 * jnp.sum(y * after)
            return cost, after

        slope, total = jax.grad(loss, has_aux=True)(y)
        y = y - 0.1 * slope
    return y, total


def read_by_hand(y, total):
    return jnp.sum(total**2 + jnp.sin(y))


def test_truncation_cuts_the_state_too():
    found = hypergradient(pair(mlox.Unrolled(last_steps=2)))

    def value(x):
        return read_by_hand(*run_by_hand(x, 2 * X, TRACE["sum"], 4, 2)) + jnp.sum(x**3)

    np.testing.assert_allclose(found, quick(jax.grad(value))(X), rtol=1e-12)


@pytest.mark.slow
def test_each_task_has_a_state():
    shapes = {"tasks": 3, "params": X}
    x = make("x", lambda x, batch, ctx: read(ctx) + jnp.sum(x**3), **shapes)
    y = make(
        "y",
        lower_loss,
        method=mlox.Unrolled(),
        model_state=TRACE,
        unroll_steps=3,
        **shapes,
    )
    engine = mlox.Engine([x, y], u2l={"x": ["y"]}, l2u={"y": ["x"]})
    found = hypergradient(engine)
    np.testing.assert_allclose(found, differences(engine, "x"), rtol=1e-7)


def layers(middle):
    """Make t over p over y, both of which read the state of y."""

    def cost_of_p(params, batch, ctx):
        return read(ctx) + jnp.sum((params - ctx.t.params) ** 2 + params**4)

    def cost_of_t(params, batch, ctx):
        return read(ctx) * jnp.sum(ctx.p.params) + jnp.sum(params**2)

    def cost_of_y(params, batch, ctx):
        neighbours = {"x": ctx.p}
        renamed = mlox.Context(ctx.name, neighbours, None, ctx.step, ctx.model_state)
        return lower_loss(params, batch, renamed)

    t = make("t", cost_of_t)
    p = make("p", cost_of_p, method=middle, unroll_steps=2, params=X + 0.1)
    y = make(
        "y",
        cost_of_y,
        method=mlox.Unrolled(),
        unroll_steps=3,
        model_state=TRACE,
        params=2 * X,
    )
    u2l, l2u = {"t": ["p"], "p": ["y"]}, {"y": ["p", "t"], "p": ["t"]}
    return mlox.Engine([t, p, y], u2l, l2u)


@pytest.mark.slow
def test_states_move_in_windows_within_windows():
    engine = layers(mlox.Unrolled())
    for name in "tp":
        found, expected = hypergradient(engine, name), differences(engine, name)
        np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.slow
def test_states_move_within_the_residual_of_an_implicit_answer():
    """Against the formula of the implicit function theorem around a loop by hand."""
    engine = layers(mlox.Implicit(mlox.Dense()))
    engine = mlox.Engine(
        [q.replace(unroll_steps=1) if q.name == "p" else q for q in engine.problems],
        {"t": ["p"], "p": ["y"]},
        {"y": ["p", "t"], "p": ["t"]},
    )
    after, _ = quick(engine.step)(engine.init(), without_data(engine))
    p, t = after["p"].params, X

    def cost_of_p(p, t):
        y = run_by_hand(p, 2 * X, TRACE["sum"], 3)
        return read_by_hand(*y) + jnp.sum((p - t) ** 2 + p**4)

    def cost_of_t(p, t):
        y = run_by_hand(p, 2 * X, TRACE["sum"], 3)
        return read_by_hand(*y) * jnp.sum(p) + jnp.sum(t**2)

    residual = jax.grad(cost_of_p)
    v, direct = jax.grad(cost_of_t, (0, 1))(p, t)
    multiplier = jnp.linalg.solve(jax.jacobian(residual)(p, t).T, v)
    expected = direct - jax.jacobian(residual, 1)(p, t).T @ multiplier
    np.testing.assert_allclose(hypergradient(engine, "t"), expected, rtol=1e-9)
