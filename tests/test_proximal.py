"""Implicit MAML: a pull to a learned start, and a matrix that stays definite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import mlox

RANDOM = np.random.default_rng(0)
X = jnp.asarray(RANDOM.normal(size=(6, 2)))
Y = jnp.asarray([0, 1, 1, 0, 1, 0])
START = {n: jnp.asarray(2 * RANDOM.normal(size=(2, 2))) for n in ("in", "out")}
BATCH = {"x": X, "y": Y}
STRENGTH = 0.05
GN = mlox.GaussNewton(mlox.CG(20))


def network(params, batch, ctx):
    return jnp.tanh(batch["x"] @ params["in"]) @ params["out"]


def linear(params, batch, ctx):
    return batch["x"] @ (params["in"] + params["out"])


def cross_entropy(logits, batch, ctx):
    found = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return {"loss": found.mean(), "largest": jnp.max(logits)}


NETWORK, LINEAR = (
    mlox.Composed(outputs, cross_entropy) for outputs in (network, linear)
)


def make_engine(
    loss_fn, method=GN, steps=1, rate=0.0, to="init", strength=STRENGTH, **parts
):
    def judge(params, batch, ctx):
        return optax.tree.sum(jax.tree.map(jnp.sin, ctx.fit.params))

    init = mlox.Problem.create(
        name="init", params=START, tx=optax.sgd(0.1), loss_fn=judge
    )
    fit = mlox.Problem.create(
        name="fit",
        params=jax.tree.map(lambda x: 0.9 * x, START),
        tx=optax.sgd(rate),
        loss_fn=mlox.Proximal(loss_fn, to, strength),
        method=method,
        unroll_steps=steps,
        **parts,
    )
    return mlox.Engine([init, fit], {"init": ["fit"]}, {"fit": ["init"]})


def hypergradient(engine, start=START, batch=BATCH):
    state = engine.init()
    state["init"] = state["init"].replace(params=start)
    steps = engine.steps_per_cycle["fit"]
    rows = jax.tree.map(lambda x: jnp.stack([x] * steps), batch)
    return engine.hypergradient(state, {"init": None, "fit": rows}, "init")[1]


def matrices(strength=STRENGTH):
    """Return the Hessian and the Gauss-Newton matrix of the loss with the pull."""
    at, unravel = ravel_pytree(jax.tree.map(lambda x: 0.9 * x, START))
    start = mlox.Neighbour(START, None, None)
    ctx = mlox.Context("fit", {"init": start}, None, 0, None)
    pulled = mlox.Proximal(NETWORK, "init", strength)

    @jax.jit
    def assemble(at):
        hessian = jax.hessian(lambda w: pulled(unravel(w), BATCH, ctx)["loss"])(at)
        J = jax.jacfwd(lambda w: network(unravel(w), BATCH, ctx))(at)
        logits = network(unravel(at), BATCH, ctx)
        H = jax.hessian(lambda z: cross_entropy(z, BATCH, ctx)["loss"])(logits)
        gauss_newton = jnp.einsum("nci,ncmd,mdj->ij", J, H, J)
        return hessian, gauss_newton + strength * jnp.eye(8)

    return assemble(at)


def test_gauss_newton_with_the_pull_is_definite_where_the_hessian_is_not():
    """The multiplier of CG is that of a matrix with eigenvalues >= strength."""
    hessian, definite = matrices()
    assert jnp.linalg.eigvalsh(hessian)[0] < -0.01
    assert jnp.linalg.eigvalsh(definite)[0] >= STRENGTH * (1 - 1e-9)
    at = jax.tree.map(lambda x: 0.9 * x, START)
    v = ravel_pytree(jax.tree.map(jnp.cos, at))[0]
    found = ravel_pytree(hypergradient(make_engine(NETWORK)))[0]
    expected = STRENGTH * jnp.linalg.solve(definite, v)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
def test_matrix_is_no_smaller_than_the_strength(strength):
    assert jnp.linalg.eigvalsh(matrices(strength)[1])[0] >= strength * (1 - 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("method", [mlox.Implicit(mlox.CG(4)), mlox.GaussNewton()])
def test_hypergradient_of_a_quadratic_is_its_closed_form(method):
    labels = jnp.asarray([-1.0, 1.0, 1.0, -1.0, 1.0, -1.0])
    A, b = X.T @ X, X.T @ labels
    outputs = lambda w, batch, ctx: X @ w - labels
    loss = lambda z, batch, ctx: 0.5 * jnp.sum(z**2)
    start = jnp.array([0.5, -1.0])
    init = mlox.Problem.create(
        name="init",
        params=start,
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: jnp.sum(ctx.fit.params**3),
    )
    shifted = A + 0.7 * jnp.eye(2)
    answer = jnp.linalg.solve(shifted, b + 0.7 * start)
    fit = mlox.Problem.create(
        name="fit",
        params=answer,
        tx=optax.sgd(0.0),
        loss_fn=mlox.Proximal(mlox.Composed(outputs, loss), "init", 0.7),
        method=method,
    )
    engine = mlox.Engine([init, fit], {"init": ["fit"]}, {"fit": ["init"]})
    found = engine.hypergradient(engine.init(), {"init": None, "fit": None}, "init")[1]
    expected = 0.7 * jnp.linalg.solve(shifted, 3 * answer**2)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss_fn", "method", "strength"),
    [
        (LINEAR, GN, 0.05),  # convex: Gauss-Newton is the Hessian
        (NETWORK, mlox.Implicit(mlox.CG(20)), 2.0),  # beyond any negative eigenvalue
    ],
)
def test_hypergradient_is_that_of_the_solved_inner_problem(loss_fn, method, strength):
    pull = {"strength": strength, "steps": 3000, "rate": 0.3}
    engine = make_engine(loss_fn, method, **pull)
    found = ravel_pytree(hypergradient(engine))[0]
    flat, unravel = ravel_pytree(START)

    @jax.jit
    def value(start):
        state = engine.init()
        state["init"] = state["init"].replace(params=unravel(start))
        rows = jax.tree.map(lambda x: jnp.stack([x] * 3000), BATCH)
        return engine.hypergradient(state, {"init": None, "fit": rows}, "init")[0]

    h = 1e-5
    slopes = [
        (value(flat + h * e) - value(flat - h * e)) / (2 * h) for e in jnp.eye(8)[::3]
    ]
    np.testing.assert_allclose(found[::3], slopes, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_reads_a_part_of_an_upper_and_a_learned_strength():
    """C = (w - 1)^2 / 2: the answer is (1 + s c) / (1 + s)."""
    c, s = 3.0, 0.5
    init = mlox.Problem.create(
        name="init",
        params={"net": jnp.asarray(c), "strength": jnp.asarray(s)},
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: ctx.fit.params,
    )
    loss_fn = mlox.Proximal(
        lambda w, batch, ctx: 0.5 * (w - 1.0) ** 2,
        to=lambda ctx: ctx.init.params["net"],
        strength=lambda ctx: ctx.init.params["strength"],
    )
    answer = (1 + s * c) / (1 + s)
    fit = mlox.Problem.create(
        name="fit", params=jnp.asarray(answer), tx=optax.sgd(0.0), loss_fn=loss_fn
    )
    engine = mlox.Engine([init, fit], {"init": ["fit"]}, {"fit": ["init"]})
    found = engine.hypergradient(engine.init(), {"init": None, "fit": None}, "init")[1]
    np.testing.assert_allclose(found["net"], s / (1 + s), rtol=1e-12)
    np.testing.assert_allclose(found["strength"], (c - answer) / (1 + s), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        lambda loss_fn: mlox.Accumulated(loss_fn, 3),
        lambda loss_fn: mlox.MixedPrecision(loss_fn, jnp.float64),
    ],
)
def test_wrapped_losses_of_parts_are_the_same(wrap):
    found, same = (hypergradient(make_engine(f)) for f in (wrap(NETWORK), NETWORK))
    np.testing.assert_allclose(*(ravel_pytree(x)[0] for x in (found, same)), rtol=1e-9)


@pytest.mark.slow
def test_each_of_some_tasks_is_pulled_to_one_start():
    both = {"x": jnp.stack([X, X[::-1]]), "y": jnp.stack([Y, Y])}
    found = hypergradient(make_engine(NETWORK, tasks=2), batch=both)
    parts = [
        hypergradient(make_engine(NETWORK), batch={"x": x, "y": Y})
        for x in (X, X[::-1])
    ]
    total = jax.tree.map(jnp.add, *parts)
    np.testing.assert_allclose(*(ravel_pytree(x)[0] for x in (found, total)), rtol=1e-9)


@pytest.mark.slow
def test_metrics_of_the_loss_stay():
    engine = make_engine(NETWORK)
    rows = jax.tree.map(lambda x: x[None], BATCH)
    _, metrics = engine.step(engine.init(), {"init": None, "fit": rows})
    assert metrics["fit/largest"] > 0


def make_few_shots(loss_fn, method):
    """Return implicit MAML in small: "fit" starts at "init" and is far from solved."""
    engine = make_engine(mlox.Composed(network, cross_entropy), method)
    init, fit = engine.problems
    started = fit.replace(
        loss_fn=loss_fn, tx=optax.sgd(0.01), reset=lambda params, ctx: ctx.init.params
    )
    engine = mlox.Engine([init, started], {"init": ["fit"]}, {"fit": ["init"]})
    return engine, engine.init(), {"init": None, "fit": ROWS}, "init"


ROWS = jax.tree.map(lambda x: x[None], BATCH)


@pytest.mark.slow
def test_check_names_the_pull_for_an_answer_that_forgets_its_start():
    given = make_few_shots(NETWORK, mlox.Implicit(mlox.CG(5)))
    (found,) = mlox.check(*given).findings
    assert found.cause is mlox.Cause.NOT_READ
    assert "starts at 'init' by reset" in found.text
    assert "mlox.Proximal(loss_fn, to='init'" in found.remedy
    assert "mlox.Unrolled()" in found.remedy


@pytest.mark.slow
def test_check_names_gauss_newton_for_implicit_maml_on_an_indefinite_matrix():
    pulled = mlox.Proximal(NETWORK, "init", 1e-3)
    report = mlox.check(*make_few_shots(pulled, mlox.Implicit(mlox.CG(5))))
    (found,) = report.findings
    assert found.cause is mlox.Cause.INDEFINITE
    assert "mlox.GaussNewton() with mlox.Proximal(mlox.Composed" in found.remedy
    assert "raise the strength by more than" in found.remedy
    assert mlox.check(*make_few_shots(pulled, GN)).ok
