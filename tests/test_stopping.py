"""Early stopping: what counts, what is returned, and what is refused early."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._run.early_stopping import Best, reason, update


def loss(params, batch, ctx):
    return {"loss": params, "vector": jnp.ones(2), "wave": jnp.abs(params - 7.0)}


def make_engine(name="x"):
    """A problem whose parameter counts its cycles."""
    problem = mlox.Problem.create(
        name=name, params=jnp.zeros(()), tx=optax.sgd(-1.0), loss_fn=loss
    )
    return mlox.Engine([problem])


@pytest.fixture(scope="module")
def engine():
    return make_engine()


def score(values, name="score"):
    """A validation that gives the values one by one, whatever the state."""
    values = iter(values)
    return lambda state: {name: next(values)}


def run(engine, rule, train_iters=12, **options):
    options = {"loggers": (), "log_every": 1, **options}
    return engine.run(engine.init(), None, train_iters, early_stopping=rule, **options)


def judged(rule, values):
    best = Best()
    for cycle, value in enumerate(values, 1):
        best = update(rule, best, cycle, value)
    return best


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("mode", "min_delta", "values", "expected"),
    [
        ("max", 0.0, [1.0, 3.0, 2.0], (2, 3.0, 1)),
        ("min", 0.0, [1.0, 3.0, 2.0], (1, 1.0, 2)),
        ("max", 0.0, [1.0, 1.0], (1, 1.0, 1)),
        # Small steps do not count one by one, but they do once they add up.
        ("max", 0.5, [1.0, 1.5, 1.25], (1, 1.0, 2)),
        ("min", 0.5, [1.0, 0.75, 0.25], (3, 0.25, 0)),
        ("max", 0.0, [NAN, NAN], (0, NAN, 2)),
        ("min", 0.0, [NAN, 2.0, NAN], (2, 2.0, 1)),
        ("max", 0.0, [-INF, 1.0, NAN, 2.0], (4, 2.0, 0)),
        ("max", 0.0, [INF, INF], (1, INF, 1)),
    ],
)
def test_points_are_judged(mode, min_delta, values, expected):
    found = judged(mlox.EarlyStopping("a/b", mode, min_delta=min_delta), values)
    np.testing.assert_equal(tuple(found), expected)
    assert [type(part) for part in found] == [int, float, int]


def test_a_rule_is_a_value():
    one, other = (mlox.EarlyStopping("a/b", "max", patience=3) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(("restore_best", "returned"), [(True, 4), (False, 8)])
def test_the_state_of_the_best_point_is_returned(
    engine, restore_best, returned, donate
):
    rule = mlox.EarlyStopping(
        "validation/score", "max", patience=2, restore_best=restore_best
    )
    state, history = run(
        engine,
        rule,
        validation=score([1.0, 3.0, 2.0, 3.0]),
        valid_every=2,
        log_every=3,
        donate=donate,
    )
    assert float(state["x"].params) == returned
    assert int(state["x"].step) == returned
    # The history is whole until the end, which is a log point.
    assert history["cycle"].tolist() == [3, 6, 8]
    np.testing.assert_allclose(history["x/loss"], [1.0, 4.0, 6.5])
    assert history["validation/cycle"].tolist() == [2, 4, 6, 8]
    assert history["validation/score"].tolist() == [1.0, 3.0, 2.0, 3.0]
    assert history["best_cycle"].shape == ()
    assert history["best_cycle"] == 4


@pytest.mark.parametrize("donate", [False, True])
def test_a_mean_metric_is_judged_at_log_points(engine, donate):
    rule = mlox.EarlyStopping("x/wave", "min", patience=2)
    seen = []
    state, history = run(
        engine,
        rule,
        train_iters=30,
        log_every=2,
        valid_every=7,
        validation=lambda state: seen.append(float(state["x"].params)) or {},
        donate=donate,
    )
    # Cycle c starts from c - 1: the means are over |c - 8|.
    assert history["cycle"].tolist() == [2, 4, 6, 8, 10, 12]
    assert history["x/wave"].tolist() == [6.5, 4.5, 2.5, 0.5, 1.5, 3.5]
    assert history["best_cycle"] == 8
    assert float(state["x"].params) == 8.0
    # The end of the run is validated, too.
    assert seen == [7.0, 12.0]


@pytest.mark.parametrize("cycles_per_dispatch", [1, 5])
def test_points_fall_on_the_end_of_a_dispatch(engine, cycles_per_dispatch):
    rule = mlox.EarlyStopping("x/loss", "min", patience=1)
    state, history = run(
        engine, rule, log_every=2, cycles_per_dispatch=cycles_per_dispatch
    )
    cycle = {1: [2, 4], 5: [5, 10]}[cycles_per_dispatch]
    assert history["cycle"].tolist() == cycle
    assert float(state["x"].params) == cycle[0]


def test_the_best_state_is_returned_though_the_run_ends_by_itself(engine):
    rule = mlox.EarlyStopping("validation/score", "max", patience=9)
    state, history = run(engine, rule, train_iters=3, validation=score([1.0, 3.0, 2.0]))
    assert float(state["x"].params) == 2.0
    assert history["cycle"].tolist() == [1, 2, 3]
    assert history["best_cycle"] == 2


def test_nothing_is_best_where_there_is_no_number(engine):
    rule = mlox.EarlyStopping("validation/score", "max", patience=3)
    state, history = run(engine, rule, validation=score([NAN] * 3))
    assert float(state["x"].params) == 3.0
    assert history["best_cycle"] == 0


def test_a_run_without_a_rule_has_no_best_cycle(engine):
    _, history = run(engine, None, train_iters=2)
    assert set(history) == {"cycle", "x/loss", "x/vector", "x/wave"}


def test_the_point_of_the_stop_is_logged_once(engine):
    rows = []

    class Collect:
        def log(self, step, metrics):
            rows.append((step, set(metrics)))

        def close(self):
            rows.append("closed")

    rule = mlox.EarlyStopping("validation/score", "max", patience=1)
    run(
        engine,
        rule,
        validation=score([2.0, 1.0]),
        valid_every=2,
        log_every=9,
        loggers=[Collect()],
    )
    means = {"cycles_per_second", "x/loss", "x/wave"}
    stop = (4, {"validation/score", *means})
    assert rows == [(2, {"validation/score"}), stop, "closed"]


@pytest.mark.parametrize(
    ("values", "train_iters", "last"),
    [
        (
            [1.0, 3.0, 2.0, 2.0],
            9,
            "       4  stopped early: validation/score was best 2 points ago, "
            "at cycle 2 (3.000)",
        ),
        ([NAN, NAN], 9, "       2  stopped early: validation/score was never a number"),
        # Where the run ends anyway, nothing is to be explained.
        ([2.0, 1.0, 1.0], 3, None),
    ],
)
def test_the_last_line_says_why_the_run_stopped(
    engine, capsys, values, train_iters, last
):
    rule = mlox.EarlyStopping("validation/score", "max", patience=2)
    for loggers in (None, [mlox.stdout_logger()]):
        options = {"validation": score(values), "progress": True}
        run(engine, rule, train_iters, loggers=loggers, **options)
        lines, bar = capsys.readouterr()
        found = lines.splitlines()
        assert [line for line in found if "stopped" in line] == [last] * bool(last)
        assert len(found) == len(values) + bool(last)
        assert ("stopped early" in bar.split("\r")[-1]) is bool(last)
    run(engine, rule, train_iters, validation=score(values))
    assert capsys.readouterr().out == ""


def test_a_point_ago_is_in_the_singular():
    rule = mlox.EarlyStopping("x/loss", "min", patience=1)
    assert " was best 1 point ago, at cycle 5 " in reason(rule, Best(5, 1.0, 1))


def test_a_run_that_stops_early_compiles_nothing_new(engine, caplog):
    run(engine, None, train_iters=2)
    caplog.clear()
    with jax.log_compiles():
        run(engine, mlox.EarlyStopping("x/loss", "min", patience=1))
    assert not [r for r in caplog.records if "jit(program)" in r.getMessage()]


#
# Errors
#


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"metric": 3}, ValueError, "metric is 3; expected the name of a metric"),
        ({"metric": "loss"}, ValueError, "metric is 'loss'.*'classifier/loss'"),
        ({"mode": "best"}, ValueError, "mode is 'best'; expected 'min' if smaller"),
        ({"patience": 0}, ValueError, "patience is 0; expected a positive int"),
        ({"patience": True}, ValueError, "patience is True; expected a positive"),
        ({"patience": 2.0}, ValueError, "patience is 2.0; expected a positive int"),
        ({"min_delta": -1e-3}, ValueError, "min_delta is -0.001; expected a finite"),
        ({"min_delta": NAN}, ValueError, "min_delta is nan; expected a finite"),
        ({"min_delta": "1"}, ValueError, "min_delta is '1'; expected a finite"),
        ({"restore_best": 1}, TypeError, "restore_best is 1; expected True or False"),
    ],
)
def test_a_rule_is_checked_when_it_is_made(changes, kind, message):
    with pytest.raises(kind, match=message):
        mlox.EarlyStopping(**{"metric": "validation/a", "mode": "max", **changes})


@pytest.mark.parametrize(
    ("rule", "kind", "message"),
    [
        ("x/loss", TypeError, "must be a mlox.EarlyStopping, got str. Pass e.g."),
        (
            mlox.EarlyStopping("validation/score", "max"),
            ValueError,
            "judges 'validation/score', but there is no `validation`: pass a function",
        ),
        (
            mlox.EarlyStopping("y/loss", "min"),
            ValueError,
            r"'y/loss', but no problem is called 'y'. Known: \['x'\], and 'validation'",
        ),
    ],
)
def test_a_rule_that_nothing_can_serve_is_refused_before_the_run(
    engine, rule, kind, message
):
    with pytest.raises(kind, match=message):
        run(engine, rule)


def test_a_problem_may_be_called_validation():
    rule = mlox.EarlyStopping("validation/loss", "min", patience=2)
    _, history = run(make_engine("validation"), rule)
    assert history["validation/loss"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("metric", ["x/accuracy", "x/vector"])
def test_an_unknown_mean_metric_stops_before_the_first_cycle(engine, metric):
    message = (
        rf"early stopping after cycle 0 of 12.*judges '{metric}', but no scalar is "
        r"recorded under this name. There are \['x/loss', 'x/wave'\]"
    )
    with pytest.raises(mlox.RunError, match=message) as caught:
        run(engine, mlox.EarlyStopping(metric, "max"), log_every=5)
    assert caught.value.cycle == 0
    assert float(caught.value.state["x"].params) == 0.0


@pytest.mark.parametrize("donate", [False, True])
def test_an_unknown_score_stops_at_the_first_validation(engine, donate):
    message = (
        r"early stopping after cycle 2 of 12.*'validation/a', but no scalar.* "
        r"There are \['validation/score', 'x/loss', 'x/wave'\]"
    )
    with pytest.raises(mlox.RunError, match=message) as caught:
        run(
            engine,
            mlox.EarlyStopping("validation/a", "max"),
            validation=score([1.0] * 12),
            valid_every=2,
            donate=donate,
        )
    assert caught.value.cycle == 2
    assert float(caught.value.state["x"].params) == 2.0
    assert caught.value.history["validation/score"].tolist() == [1.0]


def test_a_failure_tells_what_was_best_until_then(engine):
    def validation(state):
        if state["x"].params == 5:
            raise OSError("gone")
        return {"score": -abs(float(state["x"].params) - 3)}

    rule = mlox.EarlyStopping("validation/score", "max", patience=9)
    with pytest.raises(mlox.RunError, match="gone") as caught:
        run(engine, rule, validation=validation)
    assert caught.value.history["best_cycle"] == 3
    assert float(caught.value.state["x"].params) == 5.0


def test_a_run_may_be_without_an_end_of_its_own(engine):
    """As many cycles as fit into no list."""
    rule = mlox.EarlyStopping("x/loss", "min", patience=2)
    state, history = run(engine, rule, train_iters=10**15)
    assert state["x"].params == 1.0
    assert history["cycle"].tolist() == [1, 2, 3]
