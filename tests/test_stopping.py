"""Early stopping: what counts, what is returned, and what is refused early."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import early_stopping as flax_early_stopping

import mlox
from mlox._run.early_stopping import Best, stop_reason, update


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


def update_all(rule, values):
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
def test_update_returns_the_best_point_and_the_points_since(
    mode, min_delta, values, expected
):
    found = update_all(mlox.EarlyStopping("a/b", mode, min_delta=min_delta), values)
    np.testing.assert_equal(tuple(found), expected)
    assert [type(part) for part in found] == [int, float, int]


def test_rules_compare_and_hash_by_value():
    one, other = (mlox.EarlyStopping("a/b", "max", patience=3) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(("restore_best", "returned"), [(True, 4), (False, 8)])
def test_run_returns_the_best_state_or_the_last(engine, restore_best, returned, donate):
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
def test_mean_metric_is_compared_at_log_points(engine, donate):
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
def test_run_stops_at_the_end_of_a_dispatch(engine, cycles_per_dispatch):
    rule = mlox.EarlyStopping("x/loss", "min", patience=1)
    state, history = run(
        engine, rule, log_every=2, cycles_per_dispatch=cycles_per_dispatch
    )
    cycle = {1: [2, 4], 5: [5, 10]}[cycles_per_dispatch]
    assert history["cycle"].tolist() == cycle
    assert float(state["x"].params) == cycle[0]


def test_run_returns_the_best_state_without_an_early_stop(engine):
    rule = mlox.EarlyStopping("validation/score", "max", patience=9)
    state, history = run(engine, rule, train_iters=3, validation=score([1.0, 3.0, 2.0]))
    assert float(state["x"].params) == 2.0
    assert history["cycle"].tolist() == [1, 2, 3]
    assert history["best_cycle"] == 2


def test_run_returns_the_last_state_if_the_metric_is_always_nan(engine):
    rule = mlox.EarlyStopping("validation/score", "max", patience=3)
    state, history = run(engine, rule, validation=score([NAN] * 3))
    assert float(state["x"].params) == 3.0
    assert history["best_cycle"] == 0


def test_history_has_no_best_cycle_without_a_rule(engine):
    _, history = run(engine, None, train_iters=2)
    assert set(history) == {"cycle", "x/loss", "x/vector", "x/wave"}


def test_last_point_is_logged_once(engine):
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
def test_last_line_says_why_the_run_stopped(engine, capsys, values, train_iters, last):
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


def test_stop_reason_counts_one_point():
    rule = mlox.EarlyStopping("x/loss", "min", patience=1)
    assert " was best 1 point ago, at cycle 5 " in stop_reason(rule, Best(5, 1.0, 1))


def test_early_stopping_compiles_nothing(engine, caplog):
    run(engine, None, train_iters=2)
    caplog.clear()
    with jax.log_compiles():
        run(engine, mlox.EarlyStopping("x/loss", "min", patience=1))
    assert not [r for r in caplog.records if "jit(program)" in r.getMessage()]


#
# Resumed with another rule
#


def score_from(values):
    """A validation that gives the value of the cycle."""
    return lambda state: {"score": values[int(state["x"].step)]}


def resume(engine, folder, first, second):
    """Run 4 cycles with one rule, and go on to 6 with another."""
    options = {
        "checkpoint": mlox.Checkpoint(folder, every=2),
        "validation": score_from([NAN, 1.0, 5.0, 3.0, 2.0, 4.0, 3.0]),
    }
    run(engine, first, 4, **options)
    return run(engine, second, 6, resume=True, **options)


def score_rule(mode="max", **options):
    return mlox.EarlyStopping("validation/score", mode, **{"patience": 9, **options})


@pytest.mark.parametrize(
    ("second", "best"),
    [
        (score_rule(), 2),
        (score_rule(patience=5), 2),
        (score_rule(min_delta=0.5), 5),
        (score_rule("min"), 6),
        (mlox.EarlyStopping("x/loss", "max", patience=9), 6),
        (score_rule(restore_best=False), 5),
    ],
    ids=["same", "patience", "min_delta", "mode", "metric", "restore_best"],
)
def test_resumed_run_begins_anew_with_another_rule(engine, tmp_path, second, best):
    state, history = resume(engine, tmp_path, score_rule(), second)
    assert history["best_cycle"] == best
    assert float(state["x"].params) == (best if second.restore_best else 6)
    assert history["cycle"].tolist() == [1, 2, 3, 4, 5, 6]


def test_resumed_run_returns_the_last_state_without_a_rule(engine, tmp_path):
    state, history = resume(engine, tmp_path, score_rule(), None)
    assert float(state["x"].params) == 6.0
    assert "best_cycle" not in history


def test_resumed_run_goes_on_without_a_best_point(engine, tmp_path):
    options = {
        "checkpoint": mlox.Checkpoint(tmp_path, every=1),
        "validation": score_from([NAN] * 7),
    }
    run(engine, score_rule(patience=3), 2, **options)
    _, history = run(engine, score_rule(patience=3), 6, resume=True, **options)
    assert history["cycle"].tolist() == [1, 2, 3]
    assert history["best_cycle"] == 0


def test_run_that_stopped_goes_on_with_more_patience(engine, tmp_path):
    values = [NAN, 1.0, 5.0, 3.0, 2.0, 4.0, 3.0, 6.0, 5.0]
    options = {
        "checkpoint": mlox.Checkpoint(tmp_path, every=1),
        "validation": score_from(values),
        "train_iters": 8,
    }
    _, history = run(engine, score_rule(patience=2), **options)
    assert history["cycle"][-1] == 4
    state, history = run(engine, score_rule(patience=5), resume=True, **options)
    assert float(state["x"].params) == 7.0
    assert history["validation/score"].tolist() == values[1:]


def test_flax_stops_at_the_same_point_with_a_patience_of_one_less():
    values = [1.0, 0.5, 0.6, 0.4, 0.5, 0.7, 0.8, 0.9, 1.0]
    for patience in range(1, 5):
        theirs = flax_early_stopping.EarlyStopping(patience=patience - 1)
        rule, best = mlox.EarlyStopping("a/b", "min", patience=patience), Best()
        for cycle, value in enumerate(values, 1):
            theirs = theirs.update(value)
            best = update(rule, best, cycle, value)
            assert theirs.should_stop == (best.waited >= patience), (patience, cycle)
            if theirs.should_stop:
                break
        assert theirs.should_stop


#
# Errors
#


@pytest.mark.parametrize(
    "changes",
    [{"metric": 3}, {"patience": True}, {"min_delta": NAN}, {"min_delta": "1"}],
)
def test_rule_raises_if_a_field_is_of_a_wrong_kind(changes):
    with pytest.raises(ValueError, match=r"^EarlyStopping: "):
        mlox.EarlyStopping(**{"metric": "validation/a", "mode": "max", **changes})


def test_rule_accepts_a_problem_called_validation():
    rule = mlox.EarlyStopping("validation/loss", "min", patience=2)
    _, history = run(make_engine("validation"), rule)
    assert history["validation/loss"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("metric", ["x/accuracy", "x/vector"])
def test_run_raises_before_the_first_cycle_if_a_mean_metric_is_unknown(engine, metric):
    with pytest.raises(mlox.RunError, match=f"metric is '{metric}'") as caught:
        run(engine, mlox.EarlyStopping(metric, "max"), log_every=5)
    assert caught.value.cycle == 0
    assert float(caught.value.state["x"].params) == 0.0


@pytest.mark.parametrize("donate", [False, True])
def test_run_raises_at_the_first_validation_if_a_score_is_unknown(engine, donate):
    rule = mlox.EarlyStopping("validation/a", "max")
    options = {"validation": score([1.0] * 12), "valid_every": 2, "donate": donate}
    with pytest.raises(mlox.RunError, match="metric is 'validation/a'") as caught:
        run(engine, rule, **options)
    assert caught.value.cycle == 2
    assert float(caught.value.state["x"].params) == 2.0
    assert caught.value.history["validation/score"].tolist() == [1.0]


def test_run_error_holds_the_best_cycle_until_then(engine):
    def validation(state):
        if state["x"].params == 5:
            raise OSError("gone")
        return {"score": -abs(float(state["x"].params) - 3)}

    rule = mlox.EarlyStopping("validation/score", "max", patience=9)
    with pytest.raises(mlox.RunError, match="gone") as caught:
        run(engine, rule, validation=validation)
    assert caught.value.history["best_cycle"] == 3
    assert float(caught.value.state["x"].params) == 5.0


def test_run_may_have_more_cycles_than_a_list_can_hold(engine):
    """As many cycles as fit into no list."""
    rule = mlox.EarlyStopping("x/loss", "min", patience=2)
    state, history = run(engine, rule, train_iters=10**15)
    assert state["x"].params == 1.0
    assert history["cycle"].tolist() == [1, 2, 3]
