"""Single-loop methods as settings: SOBA's rate, MA-SOBA, SOBA with STORM."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

H = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 1.5]])
B = np.array([[1.0, 0.5], [-0.4, 0.8], [0.3, -1.0]])
TARGET = np.array([1.0, -2.0, 0.5])
# The steps of the lower, of the upper and of the multiplier.
A, RATE, STEP = 0.2, 0.1, 0.3
MOVING = 0.05  # the c of MA-SOBA
NOISE = np.random.default_rng(0).normal(size=(40, 3))


def fit_loss(y, batch, ctx):
    shift = 0.0 if batch is None else y @ batch
    return 0.5 * y @ (H @ y) - y @ (B @ ctx.up.params) + shift


def up_loss(x, batch, ctx):
    return 0.5 * jnp.sum((ctx.fit.params - TARGET) ** 2) + 0.1 * jnp.sum(x**2)


def run(method, tx, steps, noise=None):
    """Return parameters and multiplier after each step, [steps, 3 + 3 + 2]."""
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.zeros(3),
        tx=optax.sgd(A),
        loss_fn=fit_loss,
        method=method,
    )
    up = mlox.Problem.create(name="up", params=jnp.ones(2), tx=tx, loss_fn=up_loss)
    engine = mlox.Engine([up, fit], {"up": ["fit"]}, {"fit": ["up"]})

    def step(state, batch):
        fit = None if batch is None else batch[None]
        state, _ = engine.step(state, {"up": None, "fit": fit})
        lam = state["up"].memory["fit"].params["fit"]
        parts = (state["fit"].params, lam, state["up"].params)
        return state, jnp.concatenate(parts)

    scan = jax.jit(lambda xs: jax.lax.scan(step, engine.init(), xs, steps)[1])
    return np.asarray(scan(noise))


def test_soba_falls_to_the_exact_optimum_at_the_rate_of_its_block_matrix():
    """One step is affine in (y, lambda, x): its spectral radius is the rate."""
    Z = np.zeros
    # In turn: y moves, lambda sees the new y, and x moves by the old lambda.
    move_y = np.block([[np.eye(3) - A * H, Z((3, 3)), A * B], [Z((5, 3)), np.eye(5)]])
    move_x = np.eye(8)
    move_x[6:, 3:6], move_x[6:, 6:] = -RATE * B.T, (1 - 0.2 * RATE) * np.eye(2)
    move_lam = np.eye(8)
    move_lam[3:6, :3], move_lam[3:6, 3:6] = STEP * np.eye(3), np.eye(3) - STEP * H
    # x uses the old lambda, and lambda does not read x: so x may move before it.
    matrix = move_lam @ move_x @ move_y
    inverse = np.linalg.solve(H, B)
    x = np.linalg.solve(inverse.T @ inverse + 0.2 * np.eye(2), inverse.T @ TARGET)
    y = inverse @ x
    rest = np.concatenate([y, np.linalg.solve(H, y - TARGET), x])
    error = run(mlox.SOBA(STEP), optax.sgd(RATE), 400) - rest
    start = np.concatenate([Z(6), np.ones(2)]) - rest
    for n in (1, 10, 100):
        expected = np.linalg.matrix_power(matrix, n) @ start
        np.testing.assert_allclose(error[n - 1], expected, rtol=1e-9, atol=1e-12)
    radius = np.abs(np.linalg.eigvals(matrix)).max()
    lengths = np.linalg.norm(error, axis=1)
    assert radius < 1
    np.testing.assert_allclose((lengths[399] / lengths[199]) ** (1 / 200), radius, 2e-3)


@pytest.mark.slow
def test_soba_on_one_batch_keeps_what_a_warm_richardson_step_keeps_bit_for_bit():
    """They differ in the multiplier that the upper uses, not in the one they keep."""
    warm = mlox.Implicit(mlox.Richardson(1, STEP), warm_start=True)
    rest = optax.sgd(1e-300)
    np.testing.assert_array_equal(run(mlox.SOBA(STEP), rest, 30), run(warm, rest, 30))


def test_ma_soba_is_soba_with_a_moving_average_that_is_not_debiased():
    def by_hand():
        y, lam, x, h = np.zeros(3), np.zeros(3), np.ones(2), np.zeros(2)
        for noise in NOISE:
            y = y - A * (H @ y - B @ x + noise)
            d = 0.2 * x + B.T @ lam
            lam = lam - STEP * (H @ lam - (y - TARGET))
            h = (1 - MOVING) * h + MOVING * d
            x = x - RATE * h
        return np.concatenate([y, lam, x])

    def found(debias):
        average = optax.ema(1 - MOVING, debias=debias)
        tx = optax.chain(average, optax.sgd(RATE))
        return run(mlox.SOBA(STEP), tx, None, NOISE)[-1]

    np.testing.assert_allclose(found(debias=False), by_hand(), rtol=1e-12)
    assert np.abs(found(debias=True) - by_hand()).max() > 1e-2


@pytest.mark.slow
def test_storm_in_the_lower_of_soba_rests_nearer_to_its_answer():
    """On noise that is another in each step; the upper is slow beside its memory."""
    noise = np.random.default_rng(1).normal(size=(4000, 3))

    def spread(decay):
        estimate = mlox.estimators.storm(decay)
        fit = mlox.Problem.create(
            name="fit",
            params=jnp.zeros(3),
            tx=optax.chain(estimate, optax.sgd(A)),
            loss_fn=fit_loss,
            method=mlox.SOBA(STEP),
        )
        up = mlox.Problem.create(
            name="up",
            params=jnp.ones(2),
            tx=optax.sgd(RATE / 20),
            loss_fn=up_loss,
        )
        engine = mlox.Engine([up, fit], {"up": ["fit"]}, {"fit": ["up"]})

        def step(state, batch):
            batches = {"up": None, "fit": batch[None]}
            state, _ = engine.step(state, batches)
            return state, state["fit"].params

        path = jax.jit(lambda n: jax.lax.scan(step, engine.init(), n)[1])(noise)
        return np.asarray(path)[2000:].std(axis=0).max()

    assert spread(0.05) < 0.7 * spread(1.0)
