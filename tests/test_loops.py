"""Loops as values: levels of checkpoints, forward mode, loops of one's own."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._cycle.segments import cut_rounds

from .trees import assert_near

STEPS = 4


def quick(function):
    """Compile without optimization, which takes most of the time here."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def lower(name, method, tasks=None):
    """Return a lower with data, an optimizer with a state, and mutable state."""

    def loss(params, batch, ctx):
        error = jnp.tanh(batch["x"] @ params) - batch["y"] * ctx.model_state
        rate, shift = ctx.upper.params["rate"], ctx.upper.params["shift"]
        loss = jnp.mean(jnp.exp(rate * batch["x"][:, 0]) * error**2)
        loss += jnp.sum((params - shift) ** 4)
        state = 0.9 * ctx.model_state + 0.1 * jnp.mean(params**2)
        return {"loss": loss, "error": jnp.mean(error), "model_state": state}

    return mlox.Problem.create(
        name=name,
        params=jnp.array([0.3, -0.2, 0.1]),
        tx=optax.sgd(0.05, momentum=0.9),
        loss_fn=loss,
        method=method,
        model_state=jnp.array(0.5),
        rng=3,
        tasks=tasks,
        unroll_steps=STEPS,
    )


def upper_loss(params, batch, ctx):
    """Return a loss that reads answers, mutable states and a parameter of its own."""
    answers = [ctx[n] for n in ("fit", "other")]
    value = sum(jnp.sum(a.params**3) + jnp.sum(a.model_state**2) for a in answers)
    return value + jnp.sum(params["own"] ** 2)


def pair(fit, other, tasks=None):
    upper = mlox.Problem.create(
        name="upper",
        params={
            "rate": jnp.array(0.2),
            "shift": jnp.array([0.1, 0.2, -0.3]),
            "own": jnp.ones(50),
        },
        tx=optax.sgd(0.1),
        loss_fn=upper_loss,
    )
    lowers = [lower("fit", fit, tasks), lower("other", other, tasks)]
    names = [p.name for p in lowers]
    return mlox.Engine(
        [upper, *lowers], {"upper": names}, {n: ["upper"] for n in names}
    )


def data(tasks=()):
    draw = np.random.default_rng(0)
    batch = {
        "x": jnp.asarray(draw.normal(size=(STEPS, *tasks, 4, 3))),
        "y": jnp.asarray(draw.normal(size=(STEPS, *tasks, 4))),
    }
    return {"upper": None, "fit": batch, "other": batch}


def slope_of(engine, batches):
    """Return params of the upper -> its hypergradient."""
    state = engine.init()

    def at(params):
        there = {**state, "upper": state["upper"].replace(params=params)}
        return engine.hypergradient(there, batches, "upper")[1]

    return at, state["upper"].params


PLAIN = mlox.Unrolled(levels=0)
LOOPS = [
    (mlox.Forward(), PLAIN),
    (mlox.Forward(), mlox.Forward()),
    (mlox.Unrolled(levels=3), mlox.Unrolled(levels=2)),
    (mlox.Unrolled(mixed=True), mlox.Unrolled(levels=2, mixed=True)),
    (mlox.Forward(last_steps=2), mlox.Unrolled(last_steps=3)),
]


def plain(method):
    return mlox.Unrolled(last_steps=method.last_steps, levels=0, mixed=False)


@pytest.mark.parametrize(
    "loops",
    [
        LOOPS[0],
        LOOPS[3],
        *(pytest.param(x, marks=pytest.mark.slow) for x in (*LOOPS[1:3], LOOPS[4])),
    ],
    ids=str,
)
def test_loops_equal_plain_reverse_mode(loops):
    found, expected = (
        slope_of(pair(*methods), data()) for methods in (loops, map(plain, loops))
    )
    chex.assert_trees_all_close(
        quick(found[0])(found[1]), quick(expected[0])(expected[1]), rtol=1e-12
    )


def transform(f, x):
    """Return what the transformations of JAX make of a function."""
    ones = jax.tree.map(jnp.ones_like, x)
    square = lambda x: optax.tree.norm(f(x), squared=True)
    return {
        "jvp": jax.jvp(f, (x,), (ones,))[1],
        "grad": jax.grad(square)(x),
        "vmap": jax.vmap(f)(jax.tree.map(lambda a: jnp.stack([a, 2 * a]), x)),
        "remat": jax.grad(jax.checkpoint(square))(x),
        "hessian": jax.hessian(lambda rate: square({**x, "rate": rate}))(x["rate"]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("loops", [LOOPS[0], LOOPS[2], LOOPS[3]], ids=str)
def test_loops_equal_plain_reverse_mode_under_transformations(loops):
    values = [
        quick(lambda x, f=f: transform(f, x))(x)
        for f, x in (
            slope_of(pair(*methods), data()) for methods in (loops, map(plain, loops))
        )
    ]
    chex.assert_trees_all_close(*values, rtol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("loops", [LOOPS[0], LOOPS[2], LOOPS[3]], ids=str)
def test_loops_equal_plain_reverse_mode_with_tasks(loops):
    values = [
        quick(f)(x)
        for f, x in (
            slope_of(pair(*methods, tasks=2), data((2,)))
            for methods in (loops, map(plain, loops))
        )
    ]
    chex.assert_trees_all_close(*values, rtol=1e-12)


def tower(method, top):
    """Return three levels: the loop of `method` between others."""

    def problem(name, loss, method=None, steps=1, tx=None):
        return mlox.Problem.create(
            name=name,
            params=jnp.array([0.3, 0.5]),
            tx=tx or optax.sgd(0.1, momentum=0.5),
            loss_fn=lambda params, batch, ctx: loss(params, ctx),
            method=method,
            unroll_steps=steps,
        )

    problems = [
        problem("t", lambda p, ctx: jnp.sum((ctx.p.params - ctx.c.params * p) ** 2)),
        problem(
            "p",
            lambda p, ctx: jnp.sum(p**4 + (p - ctx.c.params) ** 2 * ctx.t.params),
            top,
            3,
        ),
        problem(
            "c",
            lambda p, ctx: jnp.sum((p - jnp.sin(ctx.p.params)) ** 2 * (1 + p**2)),
            method,
            4,
        ),
    ]
    return mlox.Engine(
        problems, {"t": ["p"], "p": ["c"]}, {"c": ["p", "t"], "p": ["t"]}
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "top", [mlox.Implicit(mlox.Dense()), mlox.Unrolled(), mlox.Forward()], ids=str
)
def test_forward_equals_unrolled_below_other_methods(top):
    found, expected = (
        engine.hypergradient(engine.init(), dict.fromkeys("tpc"), "t")[1]
        for engine in (tower(mlox.Forward(), top), tower(mlox.Unrolled(), top))
    )
    assert_near(found, expected, 1e-12)


@pytest.mark.slow
def test_forward_equals_unrolled_above_implicit_answers():
    found, expected = (
        engine.hypergradient(engine.init(), dict.fromkeys("tpc"), "t")[1]
        for engine in (
            tower(mlox.Implicit(mlox.Dense()), top)
            for top in (mlox.Forward(), mlox.Unrolled())
        )
    )
    assert_near(found, expected, 1e-12)


# Memory


def temporaries(method, steps, size=64):
    """Return the bytes of temporaries of a hypergradient through a small network."""

    def loss(params, batch, ctx):
        hidden = jnp.tanh(batch @ params["in"])
        decay = jnp.exp(ctx.decay.params) * optax.tree.norm(params, squared=True)
        return jnp.mean((hidden @ params["out"]) ** 2) + decay

    fit = mlox.Problem.create(
        name="fit",
        params={"in": jnp.ones((size, size)), "out": jnp.ones(size)},
        tx=optax.adam(0.01, eps_root=1e-8),
        loss_fn=loss,
        method=method,
        unroll_steps=steps,
    )
    decay = mlox.Problem.create(
        name="decay",
        params=jnp.zeros(()),
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: jnp.sum(ctx.fit.params["out"] ** 2),
    )
    engine = mlox.Engine([decay, fit], {"decay": ["fit"]}, {"fit": ["decay"]})
    batches = {"decay": None, "fit": jnp.ones((steps, 4, size))}
    slope = jax.jit(lambda s, b: engine.hypergradient(s, b, "decay"))
    compiled = slope.lower(engine.init(), batches).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_of_forward_does_not_grow_with_steps():
    short, long = (temporaries(mlox.Forward(), steps) for steps in (16, 256))
    assert long < 1.05 * short


@pytest.mark.slow
def test_more_levels_take_less_memory():
    used = [temporaries(mlox.Unrolled(levels=n), 343) for n in range(4)]
    assert used[1] < 0.8 * used[0]
    assert used[2] < 0.25 * used[1]
    assert used[3] < 0.8 * used[2]


@pytest.mark.slow
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_budget_is_met_by_what_is_compiled(levels):
    used = [temporaries(mlox.Unrolled(levels=n), 64) for n in range(3)]
    budget = int(1.25 * used[levels])
    assert temporaries(mlox.Unrolled(memory=budget), 64) == used[levels]


def test_budget_that_no_levels_meet_raises():
    message = "problem 'fit'.*memory=10.*memory=.* bytes at least, for 16 rounds"
    with pytest.raises(ValueError, match=message):
        temporaries(mlox.Unrolled(memory=10), 16)


# Segments


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("rounds", [1, 2, 17, 101, 4096])
def test_cut_rounds_takes_every_round_once(rounds, levels):
    first, sizes = cut_rounds(rounds, levels)
    assert first + np.prod(sizes) == rounds
    assert len(sizes) == levels


def test_cut_rounds_stores_few_states():
    for rounds in range(16, 600):
        for levels in (2, 3):
            least = levels * rounds ** (1 / levels)
            assert cut_rounds(rounds, levels).states <= 1.8 * least + levels


# Loops of one's own


@dataclasses.dataclass(frozen=True)
class Differences:
    """Central differences of the window along every parameter of the upper."""

    step: float = 1e-5

    def pull(self, run, params, key):
        flat, unravel = jax.flatten_util.ravel_pytree(params)

        def slope(direction):
            up, down = (run(unravel(flat + h * direction))[0] for h in self.offsets)
            return jax.tree.map(lambda a, b: (a - b) / (2 * self.step), up, down)

        slopes = jax.vmap(slope)(jnp.eye(flat.size))

        def pull_back(cotangents):
            parts = jax.tree.map(
                lambda s, c: jnp.tensordot(s, c, c.ndim), slopes, cotangents
            )
            return unravel(sum(jax.tree.leaves(parts)))

        assert key is not None
        return run(params)[1], pull_back

    @property
    def offsets(self):
        return self.step, -self.step


def test_loop_of_ones_own_is_a_method():
    found, expected = (
        slope_of(pair(*methods), data())
        for methods in ((Differences(), PLAIN), (PLAIN, PLAIN))
    )
    chex.assert_trees_all_close(
        jax.jit(found[0])(found[1]), jax.jit(expected[0])(expected[1]), rtol=1e-7
    )
    assert "Differences" in pair(Differences(), PLAIN).explain()


def test_more_levels_than_rounds_can_be_cut_into_are_those_that_can():
    levels = mlox.Unrolled(levels=50)
    assert levels.levels_of(STEPS) == mlox.Unrolled(levels=3).levels_of(STEPS) == 3
