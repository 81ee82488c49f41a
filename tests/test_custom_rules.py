"""Losses that hold a `jax.custom_vjp`, under every method.

Attention in plain JAX has the derivatives that the same function must have which is
written as flash attention is: forward and backward pass by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))
Y = jnp.asarray(np.random.default_rng(1).normal(size=4))


def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.softmax(q @ k.T) @ v


def library(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    parts = (x[None, :, None, :] for x in (q, k, v))  # batch, position, head, channel
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(*parts, scale=1.0)[0, :, 0]


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
    scores = q @ k.T
    largest = scores.max(axis=-1, keepdims=True)
    total = jnp.exp(scores - largest).sum(axis=-1, keepdims=True)
    log_sum = largest + jnp.log(total)
    out = jnp.exp(scores - log_sum) @ v
    return out, (q, k, v, out, log_sum)


def attend_backward(kept: Any, slope: jax.Array) -> tuple[jax.Array, ...]:
    # Dao et al., FlashAttention, 2022, algorithm 4.
    q, k, v, out, log_sum = kept
    weights = jnp.exp(q @ k.T - log_sum)
    inner = (slope * out).sum(axis=-1, keepdims=True)
    scores = weights * (slope @ v.T - inner)
    return scores @ k, scores.T @ q, weights.T @ slope


@jax.custom_gradient
def by_gradient(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
    out, kept = attend(q, k, v)
    return out, lambda slope: attend_backward(kept, slope)


def with_scale(scale: float, *args: jax.Array) -> jax.Array:
    return attend(*args)[0] * scale


nondiff = jax.custom_vjp(with_scale, nondiff_argnums=(0,))
nondiff.defvjp(
    lambda scale, *args: (with_scale(scale, *args), attend(*args)[1]),
    lambda scale, kept, slope: attend_backward(kept, scale * slope),
)


@jax.custom_vjp
def scores_by_rule(q: jax.Array, k: jax.Array) -> jax.Array:
    return q @ k.T


scores_by_rule.defvjp(
    lambda q, k: (q @ k.T, (q, k)), lambda kept, g: (g @ kept[1], g.T @ kept[0])
)


def nested_backward(kept: Any, slope: jax.Array) -> tuple[jax.Array, ...]:
    q, k, v, out, log_sum = kept
    weights = jnp.exp(scores_by_rule(q, k) - log_sum)
    inner = (slope * out).sum(axis=-1, keepdims=True)
    scores = weights * (scores_by_rule(slope, v) - inner)
    return scores @ k, scores.T @ q, weights.T @ slope


def rule(backward: Any = attend_backward, **options: Any) -> Attention:
    function = jax.custom_vjp(lambda *args: attend(*args)[0])
    function.defvjp(attend, backward, **options)
    return function


fused = rule()
FORMS: dict[str, Attention] = {
    "jit": jax.jit(fused),
    "remat": jax.checkpoint(fused),
    "custom_gradient": by_gradient,
    "nondiff_argnums": lambda *args: nondiff(1.0, *args),
    "a rule in the backward pass": rule(nested_backward),
    "vmap": lambda q, k, v: jax.vmap(fused, (0, None, None))(q[:, None], k, v)[:, 0],
    "cond": lambda q, k, v: jax.lax.cond(q[0, 0] > -1e9, fused, plain, q, k, v),
    "scan": lambda q, k, v: jax.lax.scan(
        lambda carry, x: (carry, fused(x[None], k, v)[0]), None, q
    )[1],
}
METHODS: list[Any] = [
    mlox.Implicit(),
    mlox.Implicit(mlox.CG(3), refine=1),
    mlox.Implicit(mlox.GMRES(8)),
    mlox.Implicit(mlox.Neumann(3, 0.1)),
    mlox.Implicit(mlox.Dense()),
    mlox.Implicit(mlox.Identity()),
    mlox.FiniteDifference(1e-3),
    mlox.SAMA(),
    mlox.SAMA(epsilon=1e-3),
    mlox.Unrolled(),
]


@dataclasses.dataclass(frozen=True)
class OneStep:
    """A method of a user, with a pairing in forward mode."""

    def multiplier(self, answer: Any, cotangent: Any, guess: Any) -> Any:
        return cotangent, {}

    def pairing(self, cost: Any, point: Any, multiplier: Any) -> jax.Array:
        return jax.jvp(cost, (point,), (multiplier,))[1]


def hypergradient(
    attention: Attention, method: Any, wrap: Any = lambda loss: loss, **options: Any
) -> Any:
    """Return the hypergradient of a weight decay, of examples and of temperature."""
    rows = jnp.ones(4)

    def fit_loss(params: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
        upper = ctx.upper.params
        q, k = X @ params["q"], jnp.exp(upper["log_scale"]) * X
        shift = 0.0 if ctx.task_index is None else 0.1 * ctx.task_index.astype(float)
        error = attention(q, k, X) @ params["w"] - Y + shift
        decay = 0.1 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return jnp.mean(upper["rows"] * error**2) + decay

    def upper_loss(params: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
        fit = ctx.fit.params
        w, q = fit["w"], fit["q"]
        return jnp.sum((w - 1.0) ** 2) + jnp.sum(jnp.sin(q))

    upper = mlox.Problem.create(
        name="upper",
        params={"rows": rows, "log_scale": jnp.zeros(())},
        tx=optax.sgd(0.1),
        loss_fn=upper_loss,
    )
    fit = mlox.Problem.create(
        name="fit",
        params={"q": jnp.eye(2) + 0.1, "w": jnp.array([0.3, -0.5])},
        tx=optax.sgd(0.05),
        loss_fn=wrap(fit_loss),
        method=method,
        unroll_steps=2,
        **options,
    )
    engine = mlox.Engine([upper, fit], {"upper": ["fit"]}, {"fit": ["upper"]})
    none = {"upper": None, "fit": None}
    state, metrics = jax.jit(engine.step)(engine.init(), none)
    # SGD has moved the upper by the hypergradient.
    return state["upper"].params, {k: v for k, v in metrics.items() if "asym" in k}


def test_a_fused_attention_has_the_hypergradient_of_a_plain_one() -> None:
    got, metrics = hypergradient(fused, mlox.Implicit(mlox.CG(3)))
    want, _ = hypergradient(plain, mlox.Implicit(mlox.CG(3)))
    chex.assert_trees_all_close(got, want, rtol=1e-10)
    assert metrics["upper/fit/asymmetry"] < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_fused_attention_has_the_hypergradient_of_a_plain_one_under(
    method: Any,
) -> None:
    got, want = (hypergradient(a, method)[0] for a in (fused, plain))
    chex.assert_trees_all_close(got, want, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_rule_is_differentiated_as(form: str) -> None:
    method = mlox.Implicit(mlox.CG(3))
    got, want = (hypergradient(a, method)[0] for a in (FORMS[form], plain))
    chex.assert_trees_all_close(got, want, rtol=1e-10)


@pytest.mark.slow
def test_the_attention_of_jax_has_the_hypergradient_of_a_plain_one() -> None:
    method = mlox.Implicit(mlox.CG(3))
    got, want = (hypergradient(a, method)[0] for a in (library, plain))
    chex.assert_trees_all_close(got, want, rtol=1e-5)  # its softmax is in float32


@pytest.mark.slow
@pytest.mark.parametrize("method", [mlox.Implicit(mlox.CG(3)), OneStep()], ids=str)
def test_a_fused_attention_fits_with_tasks(method: Any) -> None:
    got, want = (hypergradient(a, method, tasks=2)[0] for a in (fused, plain))
    chex.assert_trees_all_close(got, want, rtol=1e-10)


@pytest.mark.slow
def test_a_fused_attention_fits_with_mixed_precision() -> None:
    wrap = lambda loss: mlox.MixedPrecision(loss, jnp.float64)
    method = mlox.Implicit(mlox.CG(3))
    got, want = (hypergradient(a, method, wrap)[0] for a in (fused, plain))
    chex.assert_trees_all_close(got, want, rtol=1e-10)


def tower(attention: Attention, middle: Any, low: Any) -> Any:
    """Return the hypergradient of the highest of three levels with attention in all."""

    def attended(p: jax.Array) -> jax.Array:
        q, k, v = (jnp.stack([p, f(p)]) for f in (jnp.square, jnp.sin, jnp.cos))
        return 0.1 * attention(q, k, v).sum()

    def problem(name: str, loss: Any, method: Any = None) -> mlox.Problem:
        return mlox.Problem.create(
            name=name,
            params=jnp.linspace(0.3, 0.7, 2) + 0.1 * len(name),
            tx=optax.sgd(0.1),
            loss_fn=lambda p, batch, ctx: loss(p, ctx) + attended(p),
            method=method or mlox.Implicit(),
        )

    problems = [
        problem("top", lambda p, ctx: jnp.sum((ctx.mid.params + ctx.low.params) ** 2)),
        problem(
            "mid",
            lambda p, ctx: (
                jnp.sum((p - ctx.top.params) ** 2 + 0.2 * p * ctx.low.params**2)
                + attended(p + ctx.low.params)
            ),
            middle,
        ),
        problem(
            "low",
            lambda p, ctx: jnp.sum((p - ctx.mid.params) ** 2 + p * ctx.top.params),
            low,
        ),
    ]
    engine = mlox.Engine(
        problems,
        {"top": ["mid", "low"], "mid": ["low"]},
        {"mid": ["top"], "low": ["mid", "top"]},
    )
    batches = dict.fromkeys(engine.names)
    return jax.jit(lambda s: engine.hypergradient(s, batches, "top"))(engine.init())


@pytest.mark.slow
@pytest.mark.parametrize(
    "methods",
    [
        (mlox.Implicit(), mlox.Implicit()),
        (mlox.Unrolled(), mlox.Implicit(mlox.CG(3))),
        (mlox.Implicit(), mlox.Unrolled()),
        (mlox.FiniteDifference(), mlox.SAMA()),
    ],
    ids=str,
)
def test_a_fused_attention_has_the_hypergradient_of_a_plain_one_in_towers(
    methods: Any,
) -> None:
    got, want = (tower(a, *methods) for a in (fused, plain))
    chex.assert_trees_all_close(got, want, rtol=1e-9)


# A rule that is not the derivative of its function: a straight-through estimator, of
# which the gradient of the cost is G(y, x) = A y - x and dG/dy = A is not symmetric.
A = jnp.array([[2.0, 0.7], [-0.4, 1.5]])


@jax.custom_vjp
def estimated(y: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.round(y))


estimated.defvjp(
    lambda y, x: (estimated(y, x), (y, x)),
    lambda kept, g: (g * (A @ kept[0] - kept[1]), -g * kept[0]),
)


def estimate(method: Any) -> tuple[mlox.Engine, Any]:
    upper = mlox.Problem.create(
        name="upper",
        params=jnp.ones(2),
        tx=optax.sgd(0.1),
        loss_fn=lambda p, batch, ctx: jnp.sum(ctx.fit.params * jnp.array([1.0, 2.0])),
    )
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.ones(2),
        tx=optax.sgd(0.1),
        loss_fn=lambda p, batch, ctx: estimated(p, ctx.upper.params),
        method=method,
    )
    engine = mlox.Engine([upper, fit], {"upper": ["fit"]}, {"fit": ["upper"]})
    return engine, {"upper": None, "fit": None}


def test_a_rule_that_is_not_the_derivative_is_followed_by_a_general_solver() -> None:
    engine, batches = estimate(mlox.Implicit(mlox.Dense()))
    _, got = engine.hypergradient(engine.init(), batches, "upper")
    want = jnp.linalg.solve(A.T, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.slow
def test_a_rule_that_is_not_the_derivative_is_told_where_the_solver_is_symmetric() -> (
    None
):
    engine, _ = estimate(mlox.Implicit(mlox.CG(2)))
    with pytest.warns(UserWarning, match=r"is not symmetric.*mlox\.GMRES"):
        _, history = engine.run(engine.init(), {}, train_iters=8, log_every=4)
    assert history["upper/fit/asymmetry"][-1] > 0.01


@pytest.mark.slow
def test_an_error_is_raised_where_jax_cannot_differentiate_a_backward_pass() -> None:
    with pytest.raises(TypeError, match=r"backward pass cannot be differentiated"):
        hypergradient(rule(optimize_remat=True), mlox.Implicit())


@jax.custom_vjp
def opaque(x: jax.Array) -> jax.Array:
    return jnp.sum(x**2)


def opaque_backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return (g * jax.pure_callback(lambda x: 2 * x, shape, x),)


opaque.defvjp(lambda x: (opaque(x), x), opaque_backward)


def opaque_pair(method: Any) -> Any:
    """Return the hypergradient of an upper whose lower has such a rule."""
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.ones(2),
        tx=optax.sgd(0.1),
        loss_fn=lambda p, batch, ctx: opaque(p - ctx.upper.params),
        method=method,
    )
    upper = mlox.Problem.create(
        name="upper",
        params=jnp.ones(2),
        tx=optax.sgd(0.1),
        loss_fn=lambda p, batch, ctx: jnp.sum(ctx.fit.params**2),
    )
    engine = mlox.Engine([upper, fit], {"upper": ["fit"]}, {"fit": ["upper"]})
    batches = {"upper": None, "fit": None}
    return engine.hypergradient(engine.init(), batches, "upper")[1]


@pytest.mark.parametrize("method", [mlox.Implicit(), mlox.SAMA(), mlox.Unrolled()])
def test_an_error_names_what_works_where_a_backward_pass_has_no_derivative(
    method: Any,
) -> None:
    match = (
        r"'fit' calls a jax.custom_vjp, opaque at test_custom_rules.py:\d+, whose "
        r"backward pass.*mlox.FiniteDifference\(\)"
    )
    with pytest.raises(TypeError, match=match):
        opaque_pair(method)


@pytest.mark.parametrize("method", [mlox.FiniteDifference(), mlox.SAMA(epsilon=0.01)])
def test_a_difference_of_costs_needs_no_derivative_of_a_backward_pass(
    method: Any,
) -> None:
    slope = opaque_pair(method)
    assert jnp.all(jnp.isfinite(slope) & (slope != 0))
