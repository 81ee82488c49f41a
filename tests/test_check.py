"""`mlox.check` names planted faults, and finds nothing in healthy programs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._check.check import make_report
from mlox._check.diagnose import diagnose
from mlox._check.figures import Differences, Figures, Lower
from mlox._check.measure import Measured
from mlox._check.spectrum import extreme_eigenvalues
from mlox._check.vectors import Distance

from .planted import networks
from .planted.case import as_parameters, pair, ridge, squared
from .planted.tables import FAULTS, HEALTHY

# Tried in every run.
CHEAP = ("unrolled SGD",)


# Some faults are told at once, when the engine is built or traced.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", as_parameters(FAULTS, CHEAP))
def test_check_names_the_fault_first(case):
    report = mlox.check(*case.build())
    assert not report.ok
    assert report.findings[0].cause is mlox.Cause[case.cause], report


@pytest.mark.parametrize("case", as_parameters(HEALTHY, CHEAP))
def test_check_finds_nothing_in_a_healthy_program(case):
    report = mlox.check(*case.build())
    assert report.ok, report
    assert report.findings == ()


def count_misses(params, batch, ctx):
    x, y = batch
    missed = jnp.mean(jnp.abs(x @ ctx.fit.params - y) > 0.3).astype(y.dtype)
    return missed + 0.1 * squared(ctx.fit.params, batch)


def round_penalty(w, batch, ctx):
    strength = jnp.exp(jnp.round(ctx.penalty.params))
    return squared(w, batch) + 0.5 * jnp.sum(strength * w**2)


ADAM = optax.adam(1e-2, eps_root=1e-4)
LOW = mlox.MixedPrecision(ridge, jnp.bfloat16)
SMALL = mlox.FiniteDifference(epsilon=1e-3)
MORE = {
    "an upper that counts": (mlox.Cause.NOT_SMOOTH, {}, {"loss_fn": count_misses}),
    "a rounded penalty": (mlox.Cause.DERIVATIVE_CUT, {"loss_fn": round_penalty}, {}),
    "a large eps_root": (
        mlox.Cause.EPS_ROOT,
        {"tx": ADAM, "method": mlox.Unrolled(), "unroll_steps": 20},
        {},
    ),
    "small differences in bfloat16, which are computed in float32": (
        None,
        {"loss_fn": LOW, "method": SMALL},
        {},
    ),
    "a lower that is refined": (
        None,
        {"unroll_steps": 10, "method": mlox.Implicit(refine=3)},
        {},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE.values(), ids=MORE.keys())
def test_check_finds_the_cause(case):
    cause, fit, penalty = case
    with jax.numpy_dtype_promotion("standard"):
        report = mlox.check(*pair(fit, penalty))
    assert [f.cause for f in report.findings][:1] == ([cause] if cause else []), report


def weigh_stopped(w, batch, ctx):
    errors = (networks.predict(w, batch[0]) - batch[1]) ** 2
    slope = jnp.exp(ctx.penalty.params)
    weights = jax.nn.sigmoid(slope - slope * jax.lax.stop_gradient(errors))
    return jnp.mean(weights * errors)


@pytest.mark.slow
@pytest.mark.parametrize("method", [mlox.SAMA(), mlox.FiniteDifference()])
def test_check_allows_kinks_that_an_approximate_method_does_not_use(method):
    built = networks.network(loss_fn=weigh_stopped, method=method)
    report = mlox.check(*built, budget=1000)
    assert "losses and their derivatives" in report.costs
    causes = {finding.cause for finding in report.findings}
    # The direction of either method may be told, but nothing about the loss.
    assert causes <= {mlox.Cause.METHOD_WRONG}, report


SCALES = np.array([1.0, 2.0, 4.0])
START, TARGET = np.full(3, 0.5), np.full(3, 2.0)


def pull(method=None, steps=1):
    """Build a quadratic lower a (y - x)^2 / 2 under (y - 2)^2 / 2, by steps of 0.1."""
    upper = mlox.Problem.create(
        name="pull",
        params=jnp.ones(3),
        tx=optax.sgd(0.1),
        loss_fn=lambda x, batch, ctx: 0.5 * jnp.sum((ctx.fit.params - TARGET) ** 2),
    )
    lower = mlox.Problem.create(
        name="fit",
        params=jnp.array(START),
        tx=optax.sgd(0.1),
        loss_fn=lambda y, batch, ctx: (
            0.5 * jnp.sum(SCALES * (y - ctx.pull.params) ** 2)
        ),
        method=method,
        unroll_steps=steps,
    )
    engine = mlox.Engine([upper, lower], {"pull": ["fit"]}, {"fit": ["pull"]})
    return engine, engine.init(), {"pull": None, "fit": None}, "pull"


@pytest.fixture(scope="module")
def report():
    with jax.numpy_dtype_promotion("strict"):
        return mlox.check(*pull())


def test_report_holds_the_figures_of_a_quadratic(report):
    # y = 1 + (0.5 - 1) (1 - 0.1 a) after one step; dy/dx = 1; the hypergradient is
    # y - 2 there, and x - 2 = -1 at the solved answer y = x.
    y = 1 - 0.5 * (1 - 0.1 * SCALES)
    found = {row.cause: row for row in report.rows}
    np.testing.assert_allclose(found["solver or method"].error, 0.0, atol=1e-12)
    error = np.linalg.norm((y - TARGET) + 1.0) / np.sqrt(3)
    np.testing.assert_allclose(found["lower unsolved"].error, error)
    np.testing.assert_allclose(found["loss"].error, 0.0, atol=1e-7)
    figures = report.figures
    # The gap <lambda, G> of a quadratic: (y - 2) a^-1 a (y - 1), summed.
    np.testing.assert_allclose(figures["gap"], np.sum((y - TARGET) * (y - 1)))
    np.testing.assert_allclose(figures["loss"], 0.5 * np.sum((y - TARGET) ** 2))
    stationarity = np.linalg.norm(SCALES * (y - 1))
    np.testing.assert_allclose(figures["stationarity"], stationarity)
    np.testing.assert_allclose(figures["fit: smallest eigenvalue"], 1.0)
    np.testing.assert_allclose(figures["fit: largest eigenvalue"], 4.0)
    distance = np.linalg.norm(y - 1) / np.sqrt(3)
    np.testing.assert_allclose(figures["fit: distance to the solved answer"], distance)
    assert [f.cause for f in report.findings] == [mlox.Cause.LOWER_UNSOLVED]


def test_report_is_frozen_data_and_prints_a_table(report):
    text = str(report)
    assert max(map(len, text.splitlines())) <= 100
    assert "LOWER_UNSOLVED in 'fit'" in text
    assert "Remedy: Make more steps" in " ".join(text.split())
    assert "<table>" in report._repr_html_()
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.rows = ()
    (axes,) = report.draw().axes
    assert len(axes.patches) == len(report.rows)


@pytest.mark.slow
def test_budget_leaves_out_what_it_does_not_afford():
    report = mlox.check(*pull(), budget=40)
    assert sum(report.costs.values()) <= 40
    assert "differences, answers re-solved" in report.left_out
    assert "Left out, beyond the budget" in str(report)


@pytest.mark.slow
def test_compare_measures_each_candidate():
    engine, state, batches, name = pull(steps=100)
    methods = {
        "exact": mlox.Implicit(mlox.CG(iterations=3)),
        "identity": mlox.Implicit(mlox.Identity()),
        "loop": mlox.Unrolled(),
    }
    table = mlox.compare(engine, state, batches, name, {"fit": methods}, repeats=1)
    assert table.reference == "exact solve at the solved answer"
    rows = {row.name: row for row in table.rows}
    # The true hypergradient is y - 2 = -1; without the inverse Hessian -a.
    np.testing.assert_allclose(rows["exact"].error, 0.0, atol=1e-4)
    off = np.linalg.norm(SCALES - 1) / np.sqrt(3)
    np.testing.assert_allclose(rows["identity"].error, off, rtol=1e-4)
    np.testing.assert_allclose(rows["loop"].error, 0.0, atol=1e-4)
    assert all(row.seconds > 0 and row.memory > 0 for row in table.rows)
    assert max(map(len, str(table).splitlines())) <= 100
    (axes,) = table.draw().axes
    names = {text.get_text() for text in axes.get_legend().get_texts()}
    assert len(names) == 3


@pytest.mark.slow
def test_compare_takes_the_loop_for_the_reference_where_it_restarts():
    engine, _, batches, name = pull(mlox.Unrolled(), steps=2)
    upper, fit = engine.problems
    fit = fit.replace(reset=lambda y, ctx: ctx.pull.params)
    engine = mlox.Engine([upper, fit], {"pull": ["fit"]}, {"fit": ["pull"]})
    candidates = {"fit": {"loop": mlox.Unrolled()}}
    table = mlox.compare(engine, engine.init(), batches, name, candidates, repeats=1)
    assert table.reference == "exact unroll of the window"
    np.testing.assert_allclose(table.rows[0].error, 0.0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 5, 100])
def test_extreme_eigenvalues_are_those_of_the_matrix(size):
    draw = np.random.default_rng(size).normal(size=(size, size))
    matrix = jnp.array(draw + draw.T)
    low, high = jax.jit(lambda: extreme_eigenvalues(lambda x: matrix @ x, matrix[0]))()
    values = np.linalg.eigvalsh(np.asarray(matrix))
    np.testing.assert_allclose([low, high], [values[0], values[-1]], rtol=1e-6)


FAR = Distance(cosine=0.9, ratio=1.5, error=0.6)
NEAR = Distance(cosine=1.0, ratio=1.0, error=1e-6)


def figures(method=None, values=(1.0, 2.0), **measured):
    """Return figures of an upper whose lower is float32."""
    lower = Lower(
        name="fit",
        method=mlox.Implicit(mlox.CG(iterations=20)) if method is None else method,
        unrolled=False,
        top=True,
        definite=True,
        steps=1,
        eigenvalues=values,
    )
    return Figures("pull", finite=True, lowers=(lower,), single=True, **measured)


@pytest.mark.parametrize(
    ("values", "cause"), [((-1.0, 2.0), "INDEFINITE"), ((1.0, 2.0), "SOLVER_TOO_SHORT")]
)
def test_diagnose_names_the_solver_and_not_the_rounding_that_it_amplifies(
    values, cause
):
    off = Differences(precision=FAR, solver=FAR, indirect=FAR)
    found = diagnose(figures(values=values, differences=off))
    assert [finding.cause.name for finding in found] == [cause]


def test_diagnose_asks_for_float64_where_float32_is_not_enough():
    off = Differences(precision=FAR, solver=NEAR, indirect=NEAR)
    (single,) = diagnose(figures(differences=off))
    assert single.cause is mlox.Cause.LOW_PRECISION
    assert "jax_enable_x64" in single.remedy
    assert "FiniteDifference" not in single.remedy
    half = dataclasses.replace(
        figures(mlox.FiniteDifference(), differences=off), single=False
    )
    (half,) = diagnose(half)
    assert "in float32 or float64; for FiniteDifference" in half.remedy


def test_diagnose_names_the_lower_that_keeps_statistics():
    mixed = figures(differences=Differences(), mixing=0.1)
    (found,) = diagnose(mixed)
    assert "ctx.fit.model_state" in found.remedy
    assert "model.eval()" in found.remedy


@pytest.mark.parametrize(
    ("lower", "unjudged"),
    [(NEAR, "rows against it"), (FAR, "differences of the re-solved loss")],
)
def test_report_says_what_was_not_judged_if_the_solved_answer_was_not_found(
    lower, unjudged
):
    off = Differences(solver=NEAR, indirect=NEAR, lower=lower, loss=FAR)
    lost = figures(differences=off, stationarity=1.0, remaining=0.1)
    report = make_report(Measured(lost, {}, {}))
    note = f"The solved answer was not found: {unjudged} are not judged."
    assert report.notes == (note,)
    assert note in str(report)
    assert note in report._repr_html_()
    assert report.ok == (lower is NEAR)
    assert "Nothing wrong was found." not in str(report)
    solved = dataclasses.replace(lost, remaining=0.0)
    assert make_report(Measured(solved, {}, {})).notes == ()


def check_decayed(method):
    """Weight decay in tx doubles the curvature of the lower, which no loss knows."""
    tx = optax.chain(optax.add_decayed_weights(1.0), optax.sgd(0.3))
    x = mlox.Problem.create(
        name="x",
        params=jnp.ones(2),
        tx=optax.sgd(0.1),
        loss_fn=lambda x, batch, ctx: jnp.sum((ctx.y.params - 2.0) ** 2),
    )
    y = mlox.Problem.create(
        name="y",
        params=jnp.full(2, 0.5),
        tx=tx,
        loss_fn=lambda y, batch, ctx: 0.5 * jnp.sum((y - ctx.x.params) ** 2),
        method=method,
    )
    engine = mlox.Engine([x, y], {"x": ["y"]}, {"y": ["x"]})
    return mlox.check(engine, engine.init(), {"x": None, "y": None}, "x")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("iterations", "causes"), [(60, []), (1, ["SOLVER_TOO_SHORT"])]
)
def test_check_allows_a_fixed_point_that_rests_elsewhere_than_its_loss(
    iterations, causes
):
    found = check_decayed(mlox.FixedPoint(iterations))
    assert [finding.cause.name for finding in found.findings] == causes
    assert "moves at a zero gradient" in found.notes[0]


@pytest.mark.slow
def test_check_offers_fixed_points_for_answers_that_rest_elsewhere_than_their_loss():
    (finding,) = check_decayed(mlox.Implicit()).findings
    assert finding.cause is mlox.Cause.LOWER_UNSOLVED
    assert "weight decay), so that it comes to rest elsewhere" in finding.remedy
    assert "mlox.FixedPoint" in finding.remedy
