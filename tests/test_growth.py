"""Programs grow as `benchmarks/growth.py` says: equations and arrays, not seconds."""

import dataclasses
import importlib
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

import mlox

from .small import problem

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"
CG = mlox.Implicit(mlox.CG(2))
METHODS = {
    "cg": CG,
    "identity": mlox.Implicit(mlox.Identity()),
    "finite difference": mlox.FiniteDifference(),
    "sama": mlox.SAMA(),
    "unrolled": mlox.Unrolled(),
    "detached": mlox.Detached(),
}
slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def cases(monkeypatch):
    """The programs of the benchmark, which imports them from its own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("_growth_cases")
    for name in ("_growth_cases", "depth", "_timing"):
        sys.modules.pop(name, None)


def trace(case):
    engine = case.engine()
    return jax.make_jaxpr(engine.step)(jax.eval_shape(engine.init), case.batches).jaxpr


def count(cases, case):
    return sum(1 for _ in cases.equations(trace(case)))


def largest(cases, program):
    """Return the size of the largest array in a program."""
    return max(v.aval.size for e in cases.equations(program) for v in e.outvars)


# With L levels of checkpoints the largest array has the T^(1/L) states of a segment.
@pytest.mark.parametrize(
    ("method", "exponent"),
    [
        (mlox.Unrolled(levels=0), 1),
        slow(mlox.Unrolled(levels=1), 1),
        (mlox.Unrolled(levels=2), 1 / 2),
        slow(mlox.Unrolled(levels=3), 1 / 3),
        (CG, 0),
        slow(mlox.FiniteDifference(), 0),
    ],
)
def test_steps_add_no_equations_and_few_states(cases, method, exponent):
    few, many = (trace(cases.unroll_steps(t, method)) for t in (64, 4096))
    assert len(list(cases.equations(many))) == len(list(cases.equations(few)))
    losses = 4096
    grown = round(64**exponent) * largest(cases, few)
    assert largest(cases, many) <= max(losses, grown)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_temporaries_of_long_loops_grow_with_the_root_of_their_steps(cases, levels):
    def temporaries(steps):
        case = cases.unroll_steps(steps, mlox.Unrolled(levels=levels))
        engine = case.engine()
        program = jax.jit(engine.step).lower(engine.init(), case.batches).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries(4096) <= round(64 ** (1 / levels)) * temporaries(64)


# Each level differentiates what is below it in one more direction, which doubles it.
# What a level adds, since costs of their own are in all levels alike.
@pytest.mark.parametrize(
    ("method", "deepest"),
    [
        (mlox.Implicit(), 4),
        slow(mlox.Unrolled(), 6),
        (mlox.FiniteDifference(), 4),
        slow(mlox.Implicit(), 6),
    ],
)
def test_a_level_adds_little_more_than_twice_what_the_one_below_adds(
    cases, method, deepest
):
    sizes = [count(cases, cases.levels(n, method)) for n in range(2, deepest + 1)]
    added = [more - less for less, more in itertools.pairwise(sizes)]
    for less, more in itertools.pairwise(added):
        assert more <= 2.6 * less


def test_pairs_grow_linearly(cases):
    few, many = (
        sum(count(cases, cases.problems(n, m)) for m in METHODS.values())
        for n in (2, 8)
    )
    assert many <= 4.1 * few


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_pairs_grow_linearly_with_each_method(cases, method):
    few, many = (count(cases, cases.problems(n, METHODS[method])) for n in (32, 128))
    assert many <= 4.1 * few


def with_counted_losses(case):
    """Return the case, and a list that gets the problem of each call of a loss."""
    calls = []

    def counted(one):
        def loss(params, batch, ctx):
            calls.append(one.name)
            return one.loss_fn(params, batch, ctx)

        return dataclasses.replace(one, loss_fn=loss)

    return case._replace(problems=[counted(one) for one in case.problems]), calls


@pytest.mark.parametrize(
    ("method", "rungs"),
    [
        (mlox.Unrolled(), 2),
        slow(mlox.Unrolled(), 3),
        slow(CG, 3),
        slow(mlox.FiniteDifference(), 3),
    ],
)
def test_diamonds_grow_with_their_number_not_with_their_paths(cases, method, rungs):
    # Constants are marked for each problem that sees them: no operation, but an
    # equation. So are counts of steps.
    marks = {"stop_gradient", "attach", "sub", "max"}

    def measure(rungs):
        case, calls = with_counted_losses(cases.diamonds(rungs, method))
        names = [e.primitive.name for e in cases.equations(trace(case))]
        return len(calls), len([n for n in names if n not in marks]), len(names)

    few, many = measure(rungs), measure(4 * rungs)
    for i, exponent in enumerate((1, 1, 2)):
        assert many[i] <= 4**exponent * few[i]


@pytest.mark.parametrize(
    "method", [mlox.Unrolled(), CG, mlox.FiniteDifference(), mlox.SAMA()]
)
def test_parameters_add_no_equations_and_no_array_of_more_than_a_few_of_them(
    cases, method
):
    few, many = (trace(cases.parameters(n, method)) for n in (100, 10_000))
    assert len(list(cases.equations(many))) == len(list(cases.equations(few)))
    # The states of two unrolled steps are one array; a Jacobian has a million entries.
    assert largest(cases, many) <= 2 * 10_000


@pytest.mark.parametrize("method", [mlox.Unrolled(), slow(CG)])
def test_tasks_add_no_equations(cases, method):
    few, many = (count(cases, cases.tasks(n, method)) for n in (4, 64))
    assert many == few


def test_pull_back_is_shared_when_pairs_are_independent(cases):
    plan = cases.problems(6, mlox.Unrolled()).engine().cycle.plan
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
