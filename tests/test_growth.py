"""Engines grow in proportion to their problems: programs, and what they depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

import mlox

from .small import problem

METHODS = {
    "cg": mlox.Implicit(mlox.CG(2)),
    "identity": mlox.Implicit(mlox.Identity()),
    "finite difference": mlox.FiniteDifference(),
    "sama": mlox.SAMA(),
    "unrolled": mlox.Unrolled(),
    "detached": mlox.Detached(),
}


def lower_loss(params, batch, ctx):
    upper = ctx[ctx.name.replace("lower", "upper")].params
    return jnp.sum(params**4) + jnp.sum(upper * params**2)


def upper_loss(params, batch, ctx):
    return jnp.sum((ctx[ctx.name.replace("upper", "lower")].params - 1) ** 2)


def pairs(count, methods):
    """Make an engine of independent pairs of an upper and a lower."""
    ones = jnp.ones(2)
    upper = problem("upper", params=ones, loss_fn=upper_loss)
    lowers = [
        problem("lower", params=ones, loss_fn=lower_loss, method=m, unroll_steps=2)
        for m in methods
    ]
    problems = []
    for i in range(count):
        lower = lowers[i % len(lowers)]
        problems.append(dataclasses.replace(upper, name=f"upper{i}"))
        problems.append(dataclasses.replace(lower, name=f"lower{i}"))
    return mlox.Engine(
        problems,
        u2l={f"upper{i}": [f"lower{i}"] for i in range(count)},
        l2u={f"lower{i}": [f"upper{i}"] for i in range(count)},
    )


def equations(engine):
    """Count the equations of a step, at any depth."""

    def size(program):
        inner = (p for e in program.eqns for p in jaxprs_in_params(e.params))
        return len(program.eqns) + sum(map(size, inner))

    batches = dict.fromkeys(engine.names)
    return size(jax.make_jaxpr(engine.step)(engine.init(), batches).jaxpr)


def test_step_grows_linearly_when_pairs_are_independent():
    count, methods = len(METHODS), list(METHODS.values())
    few, many = (equations(pairs(n * count, methods)) for n in (1, 4))
    assert many <= 4.1 * few


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_step_grows_linearly_with_each_method(method):
    few, many = (equations(pairs(n, [METHODS[method]])) for n in (16, 64))
    assert many <= 4.1 * few


def test_pull_back_is_shared_when_pairs_are_independent():
    plan = pairs(3, [mlox.Unrolled()]).cycle.plan
    assert plan.pulled_together[1] == (("upper0", "upper1", "upper2"),)


def quartic(reads):
    def loss(params, batch, ctx):
        value = jnp.sum(params**4) - jnp.sum(params)
        return value + sum(jnp.sum(jnp.sin(params) * ctx[n].params ** 2) for n in reads)

    return loss


def test_pull_back_is_shared_only_when_no_answer_responds_to_both():
    # k leads c, which p reads: p, the answer of q, responds to k as well. But k does
    # not read p, so what arrives there is not for k.
    reads = {"c": "k", "d": "c", "p": "cq", "k": "d", "q": "p"}
    made = [
        problem(n, params=jnp.full(2, 0.3), loss_fn=quartic(r), method=mlox.Unrolled())
        for n, r in reads.items()
    ]
    engine = mlox.Engine(
        made,
        u2l={"k": ["c"], "q": ["p"]},
        l2u={"c": ["p", "d"], "p": ["q"], "d": ["k"]},
    )
    plan = engine.cycle.plan
    assert set(plan.pulled_together[2]) == {("k",), ("q",)}
    state, batches = engine.init(), dict.fromkeys(engine.names)
    after, _ = jax.jit(engine.step)(state, batches)
    for n in "kq":
        _, grads = engine.hypergradient(state, batches, n)
        expected = state[n].params - 0.1 * grads
        assert jnp.allclose(after[n].params, expected, rtol=1e-6)


def test_replay_runs_only_what_the_window_depends_on():
    # c is unrolled below the implicit p, whose residual runs it again; e is beside.
    reads = {"c": "p", "p": "ct", "t": "p", "e": ""}
    methods = {"c": mlox.Unrolled(), "p": mlox.Implicit()}
    made = [
        problem(n, loss_fn=quartic(r), method=methods.get(n, mlox.Implicit()))
        for n, r in reads.items()
    ]
    engine = mlox.Engine(
        made, u2l={"p": ["c"], "t": ["p"]}, l2u={"c": ["p"], "p": ["t"]}
    )
    assert engine.cycle.plan.rerun == {"p": ("c",)}
