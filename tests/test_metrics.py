"""`Engine(metrics=)`: of which steps a cycle returns the metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

from .small import GOOD, fit_loss, pair, problem, run_engine, trace

LOWERS = {
    "cg": mlox.Implicit(mlox.CG(2)),
    "unrolled": mlox.Unrolled(),
    "truncated": mlox.Unrolled(last_steps=1),
}


def stepped(**options):
    engine = pair(**options)
    return jax.jit(engine.step)(engine.init(), GOOD)


@pytest.mark.parametrize("method", LOWERS)
def test_metrics_of_last_steps_are_those_of_all_at_the_end(method):
    fit = {"method": LOWERS[method]}
    state, everything = stepped(fit=fit)
    same, last = stepped(fit=fit, metrics="last")
    for n in ("fit", "penalty"):
        np.testing.assert_allclose(same[n].params, state[n].params, rtol=1e-6)
    assert last.keys() == everything.keys()
    for key, x in last.items():
        assert x.shape == (1,)
        np.testing.assert_allclose(x, everything[key][-1:], rtol=1e-5, atol=1e-7)


def test_metrics_none_leaves_those_of_uppers_and_of_their_solvers():
    _, metrics = trace(pair(fit={"method": LOWERS["cg"]}, metrics="none"))
    reports = {"penalty/fit/residual", "penalty/fit/iterations"}
    assert set(metrics) == {"penalty/loss", *reports}


@pytest.mark.parametrize(("metrics", "steps"), [("all", 2), ("last", 1), ("none", 0)])
def test_loss_of_a_lower_is_evaluated_where_it_is_reported(metrics, steps):
    size = 64

    def loss(params, batch, ctx):
        # Its slope does not need the product, only its value does.
        square = jnp.broadcast_to(batch[0], (size, size))
        return fit_loss(params, batch, ctx) + jax.lax.stop_gradient(
            (square @ square).sum()
        )

    fit = {"loss_fn": loss, "method": mlox.FiniteDifference()}
    engine = pair(fit=fit, metrics=metrics, unroll_loops=True)
    step = jax.jit(engine.step).lower(engine.init(), GOOD).compile()
    products = step.cost_analysis()["flops"] / (2 * size**3)
    assert round(products) == steps


@pytest.mark.slow
@pytest.mark.parametrize("metrics", ["last", "none"])
def test_optimizer_gets_its_loss_when_it_is_not_reported(metrics):
    tx = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1))
    fit = {"tx": tx, "method": mlox.Implicit(mlox.CG(2))}
    for given in (fit, {**fit, "warmup_steps": 1}):
        state, _ = stepped(fit=given)
        same, _ = stepped(fit=given, metrics=metrics)
        old, new = (jax.tree.leaves(s["fit"]) for s in (state, same))
        for x, y in zip(old, new, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6)


def chain(metrics):
    """Make a chain of three levels, each with two steps for one of the next."""

    def loss_of(lower, upper):
        def loss(params, batch, ctx):
            value = jnp.sum((params - 1) ** 2)
            for n in (lower, upper):
                if n is not None:
                    value += 0.1 * jnp.sum(ctx[n].params * params)
            return value

        return loss

    made = [
        problem(n, loss_fn=loss_of(*near), unroll_steps=2)
        for n, near in {"t": ("p", None), "p": ("c", "t"), "c": (None, "p")}.items()
    ]
    return mlox.Engine(
        made, {"t": ["p"], "p": ["c"]}, {"c": ["p"], "p": ["t"]}, metrics=metrics
    )


@pytest.mark.slow
def test_run_records_what_is_reported_of_three_levels():
    runs = {m: run_engine(chain(m))[1] for m in ("all", "last", "none")}
    assert {n.split("/")[0] for n in runs["none"]} == {"cycle", "t"}
    assert runs["last"].keys() == runs["all"].keys()
    np.testing.assert_allclose(runs["none"]["t/loss"], runs["all"]["t/loss"], rtol=1e-5)


def test_engine_tells_what_it_reports():
    assert "metrics='none'" in repr(pair(metrics="none"))
    assert "metrics" not in repr(pair())
    assert "last steps" in pair(metrics="last").explain()
    assert pair(metrics="last") != pair()


@pytest.mark.slow
def test_metrics_of_chunks_of_tasks_are_those_of_all_at_once():
    tasks = {"tasks": 4}
    batches = {"penalty": None, "fit": jnp.ones((2, 4, 2), jnp.float32)}
    found = {
        (at_once, metrics): jax.jit(
            pair(
                fit={**tasks, "tasks_at_once": at_once, "unroll_steps": 2},
                metrics=metrics,
            ).step
        )
        for at_once in (None, 2)
        for metrics in ("all", "last")
    }
    engine = pair(fit={**tasks, "unroll_steps": 2})
    found = {key: step(engine.init(), batches)[1] for key, step in found.items()}
    for at_once in (None, 2):
        last, everything = found[at_once, "last"], found[None, "all"]
        assert last.keys() == everything.keys()
        for key, x in last.items():
            np.testing.assert_allclose(x, everything[key][-1:], rtol=1e-5, atol=1e-6)
