"""`ctx.inner_step` is the step within the present window, wherever it is read."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox


def count(params, batch, ctx):
    """A loss that reports what it sees; its neighbours are read, and do nothing."""
    read = sum(jnp.sum(params * ctx[n].params) for n in ctx.neighbours)
    loss = jnp.sum(params**2) + read
    return {"loss": loss, "inner_step": ctx.inner_step, "step": ctx.step}


def problem(name, **parts):
    parts = {"params": jnp.ones(()), "tx": optax.sgd(0.0), "loss_fn": count, **parts}
    return mlox.Problem.create(name=name, **parts)


def tower(roll_back=False, **lowest):
    """Make an engine of c in windows of p, which steps in windows of t."""
    lowest = {"unroll_steps": 2, **lowest}
    return mlox.Engine(
        [problem("t"), problem("p", unroll_steps=3), problem("c", **lowest)],
        {"t": ["p"], "p": ["c"]},
        {"c": ["p"], "p": ["t"]},
        roll_back=roll_back,
    )


def seen(engine, state=None, cycles=1):
    """Return the inner steps that each problem has seen in each cycle."""
    step = engine.compile(donate=False)
    state = engine.init() if state is None else state
    found = []
    for _ in range(cycles):
        state, metrics = step(state, dict.fromkeys(engine.names))
        found.append(
            {n: metrics[f"{n}/inner_step"].tolist() for n in sorted(engine.names)}
        )
    return state, found


def test_counts_from_zero_in_every_window():
    state, found = seen(tower(), cycles=2)
    each = {"c": [0, 1] * 3, "p": [0, 1, 2], "t": [0]}
    assert found == [each, each]
    assert state["c"].step == 12


def test_starts_with_the_window_when_a_run_goes_on_with_other_lengths():
    """As after a restore: 12 steps do not end a window of 5."""
    state, _ = seen(tower(), cycles=2)
    engine = tower(unroll_steps=5)
    state = {
        n: engine.init()[n].replace(step=problem.step) for n, problem in state.items()
    }
    assert seen(engine, state)[1][0]["c"] == [0, 1, 2, 3, 4] * 3


@pytest.mark.slow
def test_counts_steps_where_a_problem_has_waited():
    """p waits at first: its windows begin with the first step that it makes."""
    _, found = seen(tower(warmup_steps=8), cycles=3)
    assert [cycle["p"] for cycle in found] == [[0, 0, 0], [0, 0, 1], [0, 1, 2]]
    assert all(cycle["c"] == [0, 1] * 3 for cycle in found)


@pytest.mark.slow
def test_starts_again_after_a_look_ahead():
    """One step of three is kept, so that the counts of steps end no window."""
    pair = mlox.Engine(
        [problem("p"), problem("c", unroll_steps=3)],
        {"p": ["c"]},
        {"c": ["p"]},
        roll_back=True,
    )
    state, found = seen(pair, cycles=3)
    assert [cycle["c"] for cycle in found] == [[0, 1, 2]] * 3
    assert state["c"].step == 3
    _, found = seen(tower(roll_back=True), cycles=2)
    assert found == [{"c": [0, 1] * 3, "p": [0, 1, 2], "t": [0]}] * 2


def test_is_that_of_the_last_step_in_a_hypergradient():
    """The loss of the lower weighs its last step by what the upper has for it."""

    def weighed(params, batch, ctx):
        return 0.5 * jnp.sum((params - ctx.p.params[ctx.inner_step]) ** 2)

    def judge(params, batch, ctx):
        return jnp.sum(ctx.c.params)

    engine = mlox.Engine(
        [
            problem("p", params=jnp.zeros(3), loss_fn=judge),
            problem("c", loss_fn=weighed, unroll_steps=3),
        ],
        {"p": ["c"]},
        {"c": ["p"]},
    )
    _, gradient = engine.hypergradient(engine.init(), {"p": None, "c": None}, "p")
    np.testing.assert_allclose(gradient, [0.0, 0.0, 1.0], atol=1e-12)


def test_is_told_to_sample_and_to_tasks():
    def sample(params, ctx):
        return ctx.inner_step

    def drawn(params, batch, ctx):
        return {**count(params, batch, ctx), "drawn": batch}

    engine = mlox.Engine(
        [
            problem("p", loss_fn=lambda p, b, ctx: jnp.sum(p * ctx.c.params)),
            problem("c", loss_fn=drawn, sample=sample, unroll_steps=3, tasks=2),
        ],
        {"p": ["c"]},
        {"c": ["p"]},
    )
    _, metrics = jax.jit(engine.step)(engine.init(), {"p": None, "c": None})
    assert metrics["c/drawn_per_task"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert metrics["c/inner_step_per_task"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert engine.evaluate(engine.init(), "c", jnp.ones(2))["inner_step"] == 0
