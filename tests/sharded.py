"""A small program of two or three levels for tests on several devices."""

import functools

import chex
import jax.numpy as jnp
import numpy as np
import optax

import mlox

SIZE, BATCH = 32, 16

METHODS = {
    "unrolled": mlox.Unrolled(),
    "cg": mlox.Implicit(mlox.CG(iterations=3)),
    "warm": mlox.Implicit(mlox.CG(iterations=3), warm_start=True),
    "neumann": mlox.Implicit(mlox.Neumann(iterations=3, step=0.2)),
    "difference": mlox.FiniteDifference(),
    "fixed point": mlox.FixedPoint(iterations=3),
    "sama": mlox.SAMA(),
    "detached": mlox.Detached(),
}


def fit_loss(params, batch, ctx):
    inputs, outputs = batch
    errors = inputs @ params["w"] + params["b"] - outputs
    decay = jnp.mean(jnp.exp(ctx.penalty.params) * params["w"] ** 2)
    return {"loss": jnp.mean(errors**2) + decay, "errors": jnp.mean(errors**2, axis=1)}


def penalty_loss(params, batch, ctx):
    inputs, outputs = batch
    errors = inputs @ ctx.fit.params["w"] + ctx.fit.params["b"] - outputs
    return jnp.mean(errors**2) + 0.1 * jnp.mean(params**2)


def penalty_loss_under_prior(params, batch, ctx):
    decay = jnp.mean(jnp.exp(ctx.prior.params) * params**2)
    return penalty_loss(params, batch, ctx) + decay


def prior_loss(params, batch, ctx):
    del batch
    return jnp.mean((ctx.penalty.params - 0.3) ** 2) + 0.1 * jnp.mean(params**2)


@functools.cache
def make_engine(method, levels=2, dtype="float64", size=SIZE):
    fit = mlox.Problem.create(
        name="fit",
        params={"w": jnp.zeros((size, size), dtype), "b": jnp.zeros((1, size), dtype)},
        tx=optax.adam(0.05, eps_root=1e-16),
        loss_fn=fit_loss,
        method=method,
        unroll_steps=2,
        rng=0,
    )
    above = method
    if isinstance(method, mlox.Implicit):
        above = mlox.Implicit(mlox.GMRES(iterations=4))
    penalty = mlox.Problem.create(
        name="penalty",
        params=jnp.full((size, size), -1.0, dtype),
        tx=optax.sgd(0.1, momentum=0.9),
        loss_fn=penalty_loss if levels == 2 else penalty_loss_under_prior,
        method=above,
    )
    u2l, l2u = {"penalty": ["fit"]}, {"fit": ["penalty"]}
    if levels == 2:
        return mlox.Engine([penalty, fit], u2l, l2u)
    prior = mlox.Problem.create(
        name="prior",
        params=jnp.zeros((1, size), dtype),
        tx=optax.sgd(1.0),
        loss_fn=prior_loss,
    )
    return mlox.Engine(
        [prior, penalty, fit],
        {**u2l, "prior": ["penalty"]},
        {**l2u, "penalty": ["prior"]},
    )


@functools.cache
def make_data(dtype="float64", size=SIZE):
    draw = np.random.default_rng(0).normal
    weights = draw(size=(size, size)) / size**0.5

    def batch():
        inputs = draw(size=(BATCH, size))
        outputs = inputs @ weights + 0.1 * draw(size=(BATCH, size))
        return inputs.astype(dtype), outputs.astype(dtype)

    return {
        "fit": [batch() for _ in range(6)],
        "penalty": [batch() for _ in range(3)],
    }


def stack_cycle(engine, cycle, dtype="float64", size=SIZE):
    """Stack the batches of one cycle."""
    series = {}
    for name, batches in make_data(dtype, size).items():
        steps = engine.steps_per_cycle[name]
        series[name] = iter(batches[cycle * steps :])
    return engine.stack(series)


def select_arrays(state):
    """Select what a run changes of each problem, without keys."""
    return {n: (p.params, p.opt_state, p.step, p.memory) for n, p in state.items()}


def assert_close(found, expected, tolerance):
    """Assert that trees agree, up to rounding of sums in another order."""
    chex.assert_trees_all_close(found, expected, rtol=tolerance, atol=tolerance / 100)
