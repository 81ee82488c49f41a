"""Gauss-Newton: its matrix, where it is the Hessian, and where it stays definite."""

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
PARAMS = {n: jnp.asarray(2 * RANDOM.normal(size=(2, 2))) for n in ("in", "out")}
PENALTY = jnp.asarray(-4.0)
DENSE = mlox.Implicit(mlox.Dense())
GN = mlox.GaussNewton()


def network(params, batch, ctx):
    return jnp.tanh(batch["x"] @ params["in"]) @ params["out"], params, batch["y"]


def linear(params, batch, ctx):
    return batch["x"] @ params["out"], params, batch["y"]


def fit_loss(outputs, batch, ctx):
    logits, params, labels = outputs
    found = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    size = optax.tree.norm(params, squared=True)
    return {"loss": found + jnp.exp(ctx.penalty.params) * size, "size": size}


def penalty_loss(params, batch, ctx):
    return optax.tree.sum(ctx.fit.params)


NETWORK, LINEAR = (mlox.Composed(outputs, fit_loss) for outputs in (network, linear))


def make_engine(method, loss_fn=NETWORK, **parts):
    penalty = mlox.Problem.create(
        name="penalty", params=PENALTY, tx=optax.sgd(0.1), loss_fn=penalty_loss
    )
    fit = mlox.Problem.create(
        name="fit",
        params=PARAMS,
        tx=optax.sgd(0.0),  # the answer is where it starts, unsolved
        loss_fn=loss_fn,
        method=method,
        **parts,
    )
    return mlox.Engine([penalty, fit], {"penalty": ["fit"]}, {"fit": ["penalty"]})


def hypergradient(engine, penalty=PENALTY, x=X, y=Y):
    state = engine.init()
    state["penalty"] = state["penalty"].replace(params=penalty)
    batches = {"penalty": None, "fit": {"x": x[None], "y": y[None]}}
    return engine.hypergradient(state, batches, "penalty")[1]


def expected(x=X, moving=("in", "out")):
    """Return the hypergradient of J^T H J + 2 exp(penalty) I, from its factors."""
    x, first, last = (np.asarray(array) for array in (x, PARAMS["in"], PARAMS["out"]))
    hidden = np.tanh(x @ first)
    logits = hidden @ last
    J = {
        "in": np.einsum("ni,nk,kc->ncik", x, 1 - hidden**2, last),
        "out": np.einsum("nk,cd->nckd", hidden, np.eye(2)),
    }
    J = np.concatenate([J[n].reshape(6, 2, 4) for n in moving], axis=2)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    H = (p[:, :, None] * np.eye(2) - p[:, :, None] * p[:, None]) / 6
    part = np.concatenate([np.ravel(PARAMS[n]) for n in moving])
    matrix = np.einsum("nci,ncd,ndj->ij", J, H, J)
    matrix += 2 * np.exp(PENALTY) * np.eye(part.size)
    lam = np.linalg.solve(matrix, np.ones(part.size))
    return -2 * np.exp(PENALTY) * lam @ part


def test_hypergradient_is_that_of_the_dense_matrix():
    found = hypergradient(make_engine(GN))
    np.testing.assert_allclose(found, expected(), rtol=1e-10)


@pytest.mark.slow
def test_matrix_is_positive_where_the_hessian_is_indefinite():
    """Conjugate gradients, which solved above, are not made for it."""
    flat, unravel = ravel_pytree(PARAMS)
    penalty = mlox.Neighbour(PENALTY, None, None)
    ctx = mlox.Context("fit", {"penalty": penalty}, None, 0, None)
    loss = lambda flat: NETWORK(unravel(flat), {"x": X, "y": Y}, ctx)["loss"]
    assert jnp.linalg.eigvalsh(jax.hessian(loss)(flat))[0] < -0.01


@pytest.mark.slow
def test_hypergradient_is_exact_where_the_outputs_are_linear():
    found = hypergradient(make_engine(GN, LINEAR))
    exact = hypergradient(make_engine(DENSE, LINEAR))
    np.testing.assert_allclose(found, exact, rtol=1e-10)


@pytest.mark.slow
def test_derivative_of_a_hypergradient_is_exact_where_the_outputs_are_linear():
    """The matrix moves with the answer, at which the outputs are linearized."""
    found, exact = (
        jax.grad(lambda x, m=m: hypergradient(make_engine(m, LINEAR), x))(PENALTY)
        for m in (GN, DENSE)
    )
    np.testing.assert_allclose(found, exact, rtol=1e-9)


@pytest.mark.slow
def test_each_of_some_tasks_has_a_matrix_of_its_own():
    engine = make_engine(GN, tasks=2, tasks_at_once=1)
    found = hypergradient(engine, x=jnp.stack([X, X[::-1]]), y=jnp.stack([Y, Y]))
    np.testing.assert_allclose(found, expected() + expected(X[::-1]), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["trainable", "meta_trainable"])
def test_parameters_that_do_not_respond_are_not_in_the_matrix(part):
    engine = make_engine(GN, **{part: lambda params: {"in": False, "out": True}})
    right = expected(moving=("out",))
    np.testing.assert_allclose(hypergradient(engine), right, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        lambda loss_fn: mlox.Accumulated(loss_fn, 3),
        lambda loss_fn: mlox.MixedPrecision(loss_fn, jnp.float64),
    ],
)
def test_losses_of_a_composed_loss_are_composed(wrap):
    found = hypergradient(make_engine(GN, wrap(NETWORK)))
    np.testing.assert_allclose(found, expected(), rtol=1e-10)


@pytest.mark.slow
def test_a_mutable_state_passes_through_the_outputs():
    def outputs(params, batch, ctx):
        return *network(params, batch, ctx), ctx.model_state + 1

    def loss(outputs, batch, ctx):
        *others, count = outputs
        return fit_loss(others, batch, ctx) | {"model_state": count}

    engine = make_engine(GN, mlox.Composed(outputs, loss), model_state=jnp.int32(0))
    np.testing.assert_allclose(hypergradient(engine), expected(), rtol=1e-10)
    batch = {"x": X[None], "y": Y[None]}
    state, _ = engine.step(engine.init(), {"penalty": None, "fit": batch})
    assert state["fit"].model_state == 1


@pytest.mark.slow
def test_composed_losses_are_as_good_as_any_for_other_methods():
    plain = lambda *args: fit_loss(network(*args), *args[1:])
    found, same = (hypergradient(make_engine(DENSE, f)) for f in (NETWORK, plain))
    np.testing.assert_allclose(found, same, rtol=1e-12)
