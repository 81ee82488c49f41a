"""Mixed mode: where it is used; its numbers are held in tests/test_loops.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._hypergradient.mixed_mode import mixed_grad
from mlox._hypergradient.slopes_of_cost import is_symmetric, pays


def cost(y, x):
    """Return a cost with integers, and an auxiliary output that has a derivative."""
    h = jnp.tanh(x["a"] @ y["w"] + y["b"][None])
    value = jnp.sum(jnp.exp(x["h"][x["i"]]) * h**2) + jnp.sum(y["w"] ** 4)
    return value, {"mean": jnp.mean(h), "index": x["i"], "sum": h.sum(0)}


def plain(y, x):
    return jax.grad(cost, has_aux=True)(y, x)


def mixed(y, x):
    closed, shape = jax.make_jaxpr(
        lambda w, b: cost({"w": w, "b": b}, x), return_shape=True
    )(y["w"], y["b"])
    (w, b), rest = mixed_grad(closed, shape, (y["w"], y["b"]))
    return {"w": w, "b": b}, rest


def loop(gradient, remat, h, y):
    """Descend along a gradient for some steps, in a scan."""
    x = {"a": jnp.cos(jnp.arange(15.0)).reshape(5, 3), "i": jnp.array([[0], [1], [1]])}
    x["a"] = x["a"][:3]

    def body(carry, _):
        y, total = carry
        slope, rest = gradient(y, {**x, "h": h + 0.01 * total.sum()})
        y = jax.tree.map(lambda y, g: y - 0.05 * g, y, slope)
        return (y, rest["sum"]), rest["mean"]

    body = jax.checkpoint(body) if remat else body
    (y, total), means = jax.lax.scan(body, (y, jnp.zeros(2)), None, length=3)
    return jnp.sum(y["w"] ** 3) + jnp.sum(y["b"]) + total.sum() + means.sum()


def transform(f, h, y):
    at = lambda h: f(h, y)
    slope = jax.grad(at)
    return {
        "grad": slope(h),
        "of y": jax.vmap(jax.grad(f, 1), (None, 0))(
            h, jax.tree.map(lambda a: jnp.stack([a, 2 * a]), y)
        ),
        "jvp": jax.jvp(at, (h,), (h + 1,))[1],
        "vmap": jax.vmap(slope)(jnp.stack([h, 2 * h])),
        "jvp of grad": jax.vmap(lambda t: jax.jvp(slope, (h,), (t,))[1])(jnp.eye(2)),
        "grad of grad": jax.grad(lambda h: jnp.sum(slope(h) ** 2))(h),
        "hessian": jax.hessian(at)(h),
        "forward": jax.jacfwd(jax.jacfwd(at))(h),
    }


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_mixed_gradient_equals_plain_one_under_transformations(remat):
    y = {"w": jnp.sin(jnp.arange(6.0)).reshape(3, 2), "b": jnp.ones(2)}
    h = jnp.array([0.1, 0.3])
    found, expected = (
        jax.jit(lambda h, y, g=g: transform(lambda *a: loop(g, remat, *a), h, y))(h, y)
        for g in (mixed, plain)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))


@jax.custom_jvp
def own_rule(x):
    return jnp.round(x)


own_rule.defjvp(lambda primals, tangents: (own_rule(*primals), tangents[0]))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (jnp.tanh, True),
        (jax.nn.relu, True),
        (jax.nn.silu, True),
        (jax.checkpoint(jax.nn.relu), True),
        (reversed_gradient, False),
        (own_rule, False),
        (lambda x: mlox.attach(lambda y: y**2 - x, jnp.sqrt(x)), False),
    ],
)
def test_is_symmetric_only_where_derivatives_are_true(function, expected):
    assert is_symmetric(jax.make_jaxpr(function)(1.0)) is expected


@pytest.mark.parametrize(("rows", "expected"), [(2, False), (4096, True)])
def test_mixed_mode_pays_where_activations_outweigh_parameters(rows, expected):
    weights = [jnp.ones((16, 16))] * 4
    x = jnp.ones((rows, 16))

    def loss(*weights):
        hidden = x
        for w in weights:
            hidden = jnp.tanh(hidden @ w)
        return jnp.mean(hidden**2)

    assert pays(jax.make_jaxpr(loss)(*weights), weights) is expected


def test_explain_says_what_is_chosen_for_batches():
    upper = mlox.Problem.create(
        name="upper",
        params=jnp.ones(()),
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: jnp.sum(ctx.fit.params**2),
    )
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.ones(2),
        tx=optax.sgd(0.1),
        method=mlox.Unrolled(levels=1, mixed=True),
        unroll_steps=3,
        loss_fn=lambda params, batch, ctx: jnp.sum((params - ctx.upper.params) ** 2),
    )
    engine = mlox.Engine([upper, fit], {"upper": ["fit"]}, {"fit": ["upper"]})
    text = engine.explain({"upper": None, "fit": None})
    assert "1 level of checkpoints in 3 rounds" in text
    assert "gradients in mixed mode" in text
    assert "chosen" not in engine.explain()


def test_edge_that_only_adds_is_found_in_mixed_mode():
    upper = mlox.Problem.create(
        name="upper",
        params=jnp.ones(2),
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: jnp.sum(ctx.fit.params**2),
    )
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.ones(2),
        tx=optax.sgd(0.1),
        method=mlox.Unrolled(mixed=True),
        loss_fn=lambda params, batch, ctx: jnp.sum(params**4 + ctx.upper.params**2),
    )
    engine = mlox.Engine([upper, fit], {"upper": ["fit"]}, {"fit": ["upper"]})
    with pytest.warns(UserWarning, match="by an added term alone"):
        engine.hypergradient(engine.init(), {"upper": None, "fit": None}, "upper")
