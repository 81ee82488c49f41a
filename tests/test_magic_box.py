"""Losses that sample: every derivative of a magic box is that of the expectation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

from .planted import choices, proofs

stopped = jax.lax.stop_gradient
THETA = jnp.array([0.4, -0.7])
EFFECTS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))
FIRST = jnp.asarray(np.random.default_rng(1).normal(size=3))
SECOND = jnp.asarray(np.random.default_rng(2).normal(size=(3, 3)))


def chances(theta):
    """Return the log-probabilities of a first choice of three, [a]."""
    return jax.nn.log_softmax(EFFECTS @ theta)


def second_chances(theta):
    """Return those of a second choice after each first one, [a, b]."""
    return jax.nn.log_softmax(SECOND * theta[0] + jnp.sin(SECOND * theta[1]), axis=1)


def costs(theta):
    """Return what the choices cost, and what both together do: [a], [a, b]."""
    return 2.0 + FIRST * jnp.cos(theta[0]), SECOND * jnp.sin(theta[1] + FIRST[:, None])


def one_exact(theta):
    return jnp.sum(jnp.exp(chances(theta)) * costs(theta)[0])


def one_boxed(theta, baseline=0.0):
    logp = chances(theta)
    box = mlox.magic_box(logp)
    found = box * costs(theta)[0] + (1 - box) * baseline
    return jnp.sum(stopped(jnp.exp(logp)) * found)


def one_surrogate(theta):
    logp, cost = chances(theta), costs(theta)[0]
    return jnp.sum(stopped(jnp.exp(logp)) * (logp * stopped(cost) + cost))


def path_exact(theta):
    first, second = chances(theta), second_chances(theta)
    early, late = costs(theta)
    both = jnp.exp(first[:, None] + second)
    return jnp.sum(both * (early[:, None] + late))


def path_boxed(theta):
    """Sum a trajectory: each cost with the box of the choices before it."""
    first, second = chances(theta), second_chances(theta)
    early, late = costs(theta)
    logp = jnp.stack([jnp.broadcast_to(first[:, None], (3, 3)), second], axis=-1)
    box = mlox.magic_box(jnp.cumsum(logp, axis=-1))
    each = jnp.stack([jnp.broadcast_to(early[:, None], (3, 3)), late], axis=-1)
    return jnp.sum(stopped(jnp.exp(logp.sum(-1))) * jnp.sum(box * each, axis=-1))


def with_baselines(theta):
    """Add baselines: a number, and one that reads the choice before."""
    first, second = chances(theta), second_chances(theta)
    both = stopped(jnp.exp(first[:, None] + second))
    here, then = mlox.magic_box(first)[:, None], mlox.magic_box(second)
    base = (1 - here) * 0.7 + (1 - then) * FIRST[:, None]
    later = here * (1 - then) * FIRST[:, None]
    return path_boxed(theta) + jnp.sum(both * (base + later))


PAIRS = {
    "one choice": (one_boxed, one_exact),
    "a trajectory": (path_boxed, path_exact),
    "with baselines": (with_baselines, path_exact),
}


@pytest.mark.parametrize(
    "name",
    ["a trajectory"]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in PAIRS
        if name != "a trajectory"
    ],
)
def test_derivatives_are_those_of_the_expectation(name):
    boxed, exact = PAIRS[name]
    for derivative in (
        lambda f: f,
        jax.grad,
        jax.hessian,
        lambda f: jax.jacfwd(jax.hessian(f)),
    ):
        found, true = (jax.jit(derivative(f))(THETA) for f in (boxed, exact))
        np.testing.assert_allclose(found, true, rtol=0, atol=1e-12)


def test_surrogate_of_reinforce_has_another_hessian():
    both = one_surrogate, one_exact
    np.testing.assert_allclose(*(jax.jit(jax.grad(f))(THETA) for f in both), atol=1e-12)
    found, true = (jax.jit(jax.hessian(f))(THETA) for f in both)
    assert jnp.linalg.norm(found - true) > 0.5 * jnp.linalg.norm(true)


@pytest.mark.slow
def test_baseline_makes_the_gradient_less_noisy():
    def spread(baseline):
        logp, cost = chances(THETA), 5.0 + FIRST

        def each(theta):
            box = mlox.magic_box(chances(theta))
            return box * cost + (1 - box) * baseline

        slopes, chance = jax.jacrev(each)(THETA), jnp.exp(logp)
        return chance @ jnp.sum((slopes - (chance @ slopes)[None]) ** 2, axis=1)

    assert spread(5.0) < 0.1 * spread(0.0)


@pytest.mark.slow
def test_every_transformation_takes_it():
    x, v = jnp.linspace(-2.0, -0.5, 4), jnp.arange(4.0)
    total = lambda x: jnp.sum(x**2 * mlox.magic_box(x))
    # d^2/dx^2 of x^2 e^(x - sg(x)) is 2 + 4 x + x^2.
    curved = (2 + 4 * x + x**2) * v
    forward_over_reverse = jax.jvp(jax.grad(total), (x,), (v,))[1]
    reverse_over_reverse = jax.grad(lambda x: jax.grad(total)(x) @ v)(x)
    reverse_over_forward = jax.grad(lambda x: jax.jvp(total, (x,), (v,))[1])(x)
    mapped = jax.vmap(jax.grad(jax.grad(lambda x: x**2 * mlox.magic_box(x))))(x) * v
    again = jax.jvp(jax.grad(jax.checkpoint(total)), (x,), (v,))[1]
    for found in (
        forward_over_reverse,
        reverse_over_reverse,
        reverse_over_forward,
        mapped,
        again,
    ):
        np.testing.assert_allclose(found, curved, rtol=1e-12)
    assert mlox.magic_box(jnp.float32(-3.0)).dtype == jnp.float32
    np.testing.assert_array_equal(mlox.magic_box(x), 1.0)


@pytest.mark.parametrize("logp", [1, None, [0.5]])
def test_raises_if_logp_is_not_floating(logp):
    message = f"magic_box: logp is {logp}; expected a floating array, the log-probab"
    with pytest.raises(TypeError, match=re.escape(message)):
        mlox.magic_box(logp)


def hypergradient(estimate, method, draws=None):
    return proofs.hypergradient(*choices.build(estimate, draws, method))


def exact(logp, cost):
    """Return the loss of each choice such that their sum is the plain expectation."""
    chance = jnp.exp(logp)
    return chance * cost / stopped(chance)


# Of second order: they differentiate the gradient of the lower.
SECOND_ORDER = {
    "Implicit": mlox.Implicit(mlox.CG(3)),
    "Unrolled": mlox.Unrolled(),
    "Forward": mlox.Forward(),
    "SAMA": mlox.SAMA(),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_hypergradient_is_that_of_the_expectation(name):
    """Through an answer, where the surrogate of REINFORCE is far off."""
    method = SECOND_ORDER[name]
    found, true, surrogate = (
        hypergradient(estimate, method)
        for estimate in (choices.by_box, exact, choices.by_surrogate)
    )
    np.testing.assert_allclose(found, true, rtol=1e-10, atol=1e-12)
    assert np.linalg.norm(surrogate - true) > 0.3 * np.linalg.norm(true)


@pytest.mark.slow
def test_surrogate_serves_methods_of_first_order():
    found, true = (
        hypergradient(estimate, mlox.FiniteDifference())
        for estimate in (choices.by_surrogate, exact)
    )
    np.testing.assert_allclose(found, true, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the loss of 'fit' depends:UserWarning")
def test_hypergradient_of_draws_tends_to_that_of_the_expectation():
    method = mlox.Implicit(mlox.CG(3))
    true = hypergradient(exact, method)
    found = hypergradient(choices.by_box, method, draws=20_000)
    surrogate = hypergradient(choices.by_surrogate, method, draws=20_000)
    assert np.linalg.norm(found - true) < 0.05 * np.linalg.norm(true)
    assert np.linalg.norm(surrogate - true) > 0.3 * np.linalg.norm(true)


@pytest.mark.slow
def test_hypergradient_is_differentiated_once_more():
    """Forward over reverse through the answer of a loss that samples."""

    def along(estimate):
        engine, state, batches, name = choices.build(
            estimate, method=mlox.Implicit(mlox.CG(3))
        )

        def slope(params):
            moved = {**state, name: state[name].replace(params=params)}
            return engine.hypergradient(moved, batches, name)[1]

        at = state[name].params
        return jax.jvp(slope, (at,), (jnp.ones_like(at),))[1]

    found, true = map(along, (choices.by_box, exact))
    np.testing.assert_allclose(found, true, rtol=1e-8)


@pytest.mark.slow
def test_each_of_some_tasks_samples_its_own():
    """vmap: two tasks under one upper are the sum of two programs."""

    def fit_loss(logits, batch, ctx):
        logp = jax.nn.log_softmax(logits)
        cost = batch * ctx.up.params
        weights = stopped(jnp.exp(logp))
        boxed = jnp.sum(weights * mlox.magic_box(logp) * cost)
        return boxed + 0.5 * jnp.sum(logits**2)

    def slope(cost, tasks):
        up = mlox.Problem.create(
            name="up",
            params=jnp.ones(3),
            tx=optax.sgd(0.1),
            loss_fn=lambda params, batch, ctx: (
                jnp.sum(ctx.fit.params**2) + jnp.sum(params)
            ),
        )
        fit = mlox.Problem.create(
            name="fit",
            params=jnp.zeros(3),
            tx=optax.sgd(0.5),
            loss_fn=fit_loss,
            method=mlox.Implicit(mlox.CG(3)),
            tasks=tasks,
            unroll_steps=40,
        )
        engine = mlox.Engine([up, fit], {"up": ["fit"]}, {"fit": ["up"]})
        batches = {"up": None, "fit": jnp.broadcast_to(cost, (40, *cost.shape))}
        return engine.hypergradient(engine.init(), batches, "up")[1]

    alone = [slope(cost, None) for cost in SECOND[:2]]
    both = slope(SECOND[:2], 2)
    np.testing.assert_allclose(both, alone[0] + alone[1] - 1.0, rtol=1e-10)


@pytest.mark.slow
def test_check_does_not_judge_losses_that_draw():
    report = mlox.check(*choices.drawn())
    assert report.ok, report
    assert "Losses that sample ('fit')" in str(report)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("build", [choices.surrogate, choices.drawn_surrogate])
def test_check_names_the_remedy_for_a_surrogate(build):
    report = mlox.check(*build())
    assert report.findings[0].cause is mlox.Cause.DERIVATIVE_CUT
    assert "mlox.magic_box" in report.findings[0].remedy
