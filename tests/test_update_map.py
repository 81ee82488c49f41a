"""The optimizer's next step, as `SAMA` and `FixedPoint` see it: masks and couplings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

PARAMS = {"head": jnp.array([0.5, -0.3]), "body": jnp.array([1.0, 0.7, -0.4])}
X = jnp.array([0.2, -0.5])
NO_DATA = {"x": None, "y": None}
SLOW = pytest.mark.slow
STANDARD = jax.numpy_dtype_promotion("standard")


def lower_cost(y, x):
    return jnp.sum((y["head"] - x) ** 2) + jnp.sum(
        jnp.sin(y["body"]) * jnp.sum(x * y["head"])
    )


def upper_cost(y, x):
    return jnp.sum((y["head"] - 1.0) ** 2) + jnp.sum(y["body"] ** 2)


def make_engine(method, tx, **parts):
    upper = mlox.Problem.create(
        name="x",
        params=X,
        tx=optax.sgd(1.0),
        loss_fn=lambda x, batch, ctx: upper_cost(ctx.y.params, x),
    )
    lower = mlox.Problem.create(
        name="y",
        params=PARAMS,
        tx=tx,
        method=method,
        loss_fn=lambda y, batch, ctx: lower_cost(y, ctx.x.params),
        **parts,
    )
    return mlox.Engine([upper, lower], {"x": ["y"]}, {"y": ["x"]})


def head_alone(params):
    return {"head": True, "body": False}


@pytest.mark.parametrize("method", [mlox.SAMA(), mlox.FixedPoint(0)], ids=repr)
@pytest.mark.parametrize(
    "mask",
    ["meta_trainable", pytest.param("trainable", marks=SLOW)],
)
def test_clipping_measures_what_the_optimizer_does(method, mask):
    """Where a mask leaves the body out: it has a part in the norm if it is trained."""
    tx = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.5))
    engine = make_engine(method, tx, **{mask: head_alone})
    after = jax.jit(engine.step)(engine.init(), NO_DATA)[0]
    y = after["y"].params

    others = jax.grad(lower_cost)(y, X)["body"]
    others = jnp.zeros(3) if mask == "trainable" else others

    def linear(x):
        """Return <v, u(g(y, x))>, where x has no part in the slope v of the upper.

        What the mask leaves out is a constant, and so is its gradient.
        """
        gradient = {"head": jax.grad(lower_cost)(y, x)["head"], "body": others}
        with STANDARD:
            updates, _ = tx.update(gradient, tx.init(y), y)
        return jnp.vdot(jax.grad(upper_cost)(y, x)["head"], updates["head"])

    h = 1e-6 * jnp.eye(2)
    value = jax.jit(linear)
    expected = np.stack([(value(X + e) - value(X - e)) / 2e-6 for e in h])
    found = X - after["x"].params
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize(
    ("method", "steps", "parts", "told"),
    [
        (mlox.SAMA(), 2, {}, True),
        pytest.param(mlox.Unrolled(), 3, {}, True, marks=SLOW),
        pytest.param(mlox.SAMA(), 6, {}, False, marks=SLOW),
        pytest.param(mlox.Unrolled(), 3, {"warmup_steps": 6}, False, marks=SLOW),
        pytest.param(mlox.FixedPoint(2), 1, {"warmup_steps": 4}, False, marks=SLOW),
        pytest.param(mlox.FixedPoint(2), 1, {}, True, marks=SLOW),
        pytest.param(mlox.Forward(), 1, {}, False, marks=SLOW),
    ],
)
def test_a_rectified_adam_is_told_of_where_its_derivative_is_nan(
    method, steps, parts, told
):
    tx = optax.radam(0.1, eps_root=1e-16)
    options = {"unroll_steps": steps, **parts}
    if told:
        with pytest.warns(UserWarning, match=r"update .* of its optimizer is NaN"):
            engine = make_engine(method, tx, **options)
    else:
        engine = make_engine(method, tx, **options)
    state, step, broken = engine.init(), jax.jit(engine.step), []
    for _ in range(5):
        state, _ = step(state, NO_DATA)
        broken.append(not jnp.isfinite(state["x"].params).all())
    assert any(broken) == told
