"""The host loop: right figures, nothing lost, nothing compiled twice, quiet."""

import fcntl
import gc
import json
import math
import os
import pty
import re
import signal
import struct
import sys
import termios

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._checkpoint.options import check_best
from mlox._run.dispatch import Totals
from mlox._run.early_stopping import check_recorded
from mlox._run.metrics import mean_metrics, record_means, validate
from mlox._run.resume import restore_totals
from mlox._run.run_state import Point, Rows, stack_columns, start_at

from . import event_files
from .trees import assert_close

TX = optax.sgd(0.1)
BATCHES = [{"x": np.array([i, 1.0 - i])} for i in (0.5, -1.0, 2.0, 0.0)]


def inner_loss(params, batch, ctx):
    loss = jnp.sum((params - ctx.outer.params * batch["x"]) ** 2)
    return {"loss": loss, "params": params, "odd": ctx.step % 2, "large": loss > 1}


def outer_loss(params, batch, ctx):
    return jnp.sum((ctx.inner.params - 1.0) ** 2) + 0.1 * jnp.sum(params**2)


def make_engine(loss=inner_loss):
    outer = mlox.Problem.create(
        name="outer", params=jnp.ones(2), tx=TX, loss_fn=outer_loss
    )
    inner = mlox.Problem.create(
        name="inner", params=jnp.zeros(2), tx=TX, loss_fn=loss, unroll_steps=3, rng=0
    )
    return mlox.Engine(
        [outer, inner], u2l={"outer": ["inner"]}, l2u={"inner": ["outer"]}
    )


def states_by_hand(engine, cycles):
    """The states after 0, 1, ... cycles, and the metrics of each cycle."""
    batches = (BATCHES[i % len(BATCHES)] for i in range(3 * cycles))
    step = engine.compile(donate=False)
    states, metrics = [engine.init()], []
    for _ in range(cycles):
        state, found = step(states[-1], engine.stack({"inner": batches}))
        states.append(state)
        metrics.append(found)
    return states, metrics


@pytest.fixture(scope="module")
def engine():
    return make_engine()


@pytest.fixture(scope="module")
def by_hand(engine):
    return states_by_hand(engine, 10)


class Collect:
    """A logger of a user: any object with these two functions."""

    def __init__(self, fail_at=math.inf, fail_at_close=False):
        self.rows = []
        self.closed = 0
        self.fail_at = fail_at
        self.fail_at_close = fail_at_close

    def log(self, step, metrics):
        if step >= self.fail_at:
            raise OSError("no space left")
        self.rows.append((step, metrics))

    def close(self):
        self.closed += 1
        if self.fail_at_close:
            raise OSError("cannot flush")


#
# Figures
#


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(
    ("cycles_per_dispatch", "log_points"),
    [(1, [4, 8, 10]), (3, [6, 9, 10]), (50, [10])],
)
def test_run_returns_what_a_loop_over_step_computes(
    engine, by_hand, cycles_per_dispatch, log_points, donate
):
    states, metrics = by_hand
    state, history = engine.run(
        engine.init(),
        {"inner": BATCHES, "outer": None},
        10,
        log_every=4,
        cycles_per_dispatch=cycles_per_dispatch,
        donate=donate,
    )
    assert_close(state, states[10])
    assert history["cycle"].tolist() == log_points
    assert set(history) == {"cycle", *metrics[0]}
    for name in metrics[0]:
        start = 0
        for row, end in enumerate(log_points):
            window = np.stack([m[name] for m in metrics[start:end]])
            expected = np.mean(window.astype(float), axis=(0, 1))
            np.testing.assert_allclose(history[name][row], expected, rtol=1e-6)
            start = end
    assert history["inner/params"].shape == (len(log_points), 2)


def test_history_has_twenty_log_points_by_default(engine):
    _, history = engine.run(engine.init(), {"inner": BATCHES}, train_iters=60)
    assert history["cycle"].tolist() == list(range(3, 61, 3))
    _, history = engine.run(engine.init(), {"inner": BATCHES}, train_iters=2)
    assert history["cycle"].tolist() == [1, 2]


@pytest.mark.parametrize("donate", [False, True])
def test_run_leaves_the_state_that_was_passed_usable(engine, by_hand, donate):
    state = engine.init()
    data = {"inner": BATCHES}
    options = {"train_iters": 2, "cycles_per_dispatch": 2, "donate": donate}
    first, _ = engine.run(state, data, **options)
    assert_close(state, by_hand[0][0])
    again, _ = engine.run(state, data, **options)
    assert_close(again, first)


def test_run_takes_no_batch_that_it_does_not_use(engine, by_hand):
    for cycles_per_dispatch in (1, 4):
        exact = (BATCHES[i % 4] for i in range(30))
        state, _ = engine.run(
            engine.init(), {"inner": exact}, 10, cycles_per_dispatch=cycles_per_dispatch
        )
        assert_close(state, by_hand[0][10])
        assert next(exact, "the end") == "the end"


def test_two_runs_in_a_row_return_what_one_returns(engine, by_hand):
    source = iter(BATCHES * 8)
    state, _ = engine.run(engine.init(), {"inner": source}, 4)
    state, _ = engine.run(state, {"inner": source}, 6)
    assert_close(state, by_hand[0][10])


def test_run_without_data():
    problem = mlox.Problem.create(
        name="x", params=jnp.ones(()), tx=TX, loss_fn=lambda p, batch, ctx: p**2
    )
    engine = mlox.Engine([problem])
    state, history = engine.run(engine.init(), train_iters=3, cycles_per_dispatch=2)
    np.testing.assert_allclose(state["x"].params, 0.8**3)
    np.testing.assert_allclose(history["x/loss"], [(1 + 0.8**2) / 2, 0.8**4])


def test_cycles_between_log_points_take_no_memory(engine):
    live = []

    def validation(state):
        live.append(len(jax.live_arrays()))
        return {}

    engine.run(
        engine.init(),
        {"inner": BATCHES},
        40,
        log_every=40,
        validation=validation,
        valid_every=10,
    )
    assert live[1] >= live[2]
    assert len(live) == 4


#
# Compilation
#


def compilations(caplog):
    """How often the program of a dispatch was compiled, in JAX's own log."""
    texts = [record.getMessage() for record in caplog.records]
    return sum(text.startswith("Compiling jit(program)") for text in texts)


def test_programs_are_traced_and_compiled_once(caplog):
    traces = []

    def loss(params, batch, ctx):
        traces.append(1)
        return inner_loss(params, batch, ctx)

    def run(engine, state, **options):
        caplog.clear()
        with jax.log_compiles():
            engine.run(state, {"inner": BATCHES}, 10, cycles_per_dispatch=4, **options)
        return len(traces), compilations(caplog)

    engine = make_engine(loss)
    state = engine.init()
    jax.eval_shape(engine.step, state, engine.stack({"inner": iter(BATCHES)}))
    once = len(traces)
    traces.clear()
    # The shorter last dispatch (10 = 4 + 4 + 2) is a program, and traces nothing.
    assert run(engine, state) == (once, 2)
    assert run(engine, state) == (once, 0)
    assert run(engine, state, donate=True) == (once, 2)
    # An engine that is made again is the same value.
    again = make_engine(loss)
    assert run(again, again.init()) == (once, 0)


def test_committed_state_is_compiled_for_once(caplog, engine):
    state = jax.device_put(engine.init(), jax.devices()[0])
    with jax.log_compiles():
        engine.run(state, {"inner": BATCHES}, 4, log_every=2)
    assert compilations(caplog) <= 1


#
# Validation and loggers
#


def test_validation_is_called_every_valid_every_cycles_and_at_the_end(engine, by_hand):
    seen = []

    def validation(state):
        seen.append(int(state["outer"].step))
        total = jnp.sum(state["inner"].params)
        return {"sum": total, "count": len(seen), "good": total > 0}

    collect = Collect()
    _, history = engine.run(
        engine.init(),
        {"inner": BATCHES},
        10,
        validation=validation,
        valid_every=3,
        log_every=5,
        loggers=[collect],
    )
    assert seen == [3, 6, 9, 10]
    sums = [float(jnp.sum(by_hand[0][cycle]["inner"].params)) for cycle in seen]
    assert history["validation/cycle"].tolist() == seen
    np.testing.assert_allclose(history["validation/sum"], sums, rtol=1e-12)
    assert history["validation/count"].tolist() == [1, 2, 3, 4]
    assert [step for step, _ in collect.rows] == [3, 5, 6, 9, 10]
    rows = dict(collect.rows)
    assert set(rows[3]) == {f"validation/{name}" for name in ("sum", "count", "good")}
    assert rows[5].keys() >= {"cycles_per_second", "inner/loss", "outer/loss"}
    assert rows[10].keys() >= {"validation/sum", "inner/loss"}
    # A vector stays in the history; loggers get floats.
    assert "inner/params" not in rows[10]
    assert all(
        type(value) is float for _, row in collect.rows for value in row.values()
    )
    assert rows[10]["inner/loss"] == history["inner/loss"][-1]
    assert collect.closed == 1


def test_records_own_their_numbers():
    """A view of a fetched scalar would keep some kilobytes for every record."""
    totals = Totals({"x/loss": jnp.ones(())}, {"run/nonfinite": jnp.zeros((), int)}, {})
    point = Point(1, {"x": jnp.ones(3)}, totals, 0)
    scores = validate(lambda state: {"sum": state["x"].sum()}, point, None, False)
    for name, value in {**scores, **mean_metrics(point)}.items():
        assert value.flags.owndata, name


def test_recording_copies_no_earlier_record():
    """Copying them all at every log point would make a run quadratic."""
    totals = Totals({"x/loss": jnp.ones(())}, {}, {})
    first, _ = record_means(start_at(1, {}, totals=totals), totals)
    second, _ = record_means(first.reach(Point(2, {}, totals, 1)), totals)
    assert second.records.before is first.records
    assert first.records.before is None
    history = stack_columns(second.records)
    assert history["cycle"].tolist() == [1, 2]


def test_table_may_be_longer_than_the_recursion_limit():
    table = None
    for cycle in range(100 * sys.getrecursionlimit()):
        table = Rows({"cycle": np.asarray(cycle)}, table)
    gc.collect()
    assert stack_columns(table)["cycle"].tolist() == list(range(cycle + 1))
    assert jax.tree.leaves(table) == [table]
    assert len(repr(table)) < 100
    del table  # frees a row inside the one after it


def test_validation_is_called_at_log_points_by_default(engine):
    _, history = engine.run(
        engine.init(),
        {"inner": BATCHES},
        5,
        validation=lambda state: {"one": 1},
        log_every=2,
        cycles_per_dispatch=2,
    )
    assert history["validation/cycle"].tolist() == [2, 4, 5]
    assert history["cycle"].tolist() == [2, 4, 5]


def test_logdir_holds_the_history_for_tensorboard_and_as_json(engine, tmp_path):
    logdir = tmp_path / "runs" / "first"
    _, history = engine.run(
        engine.init(),
        {"inner": BATCHES},
        10,
        log_every=4,
        logdir=logdir,
        validation=lambda state: {"sum": state["inner"].params.sum()},
    )
    rows = [
        json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()
    ]
    found = {
        (step, tag): value
        for tag, steps in event_files.scalars(logdir).items()
        for step, value in steps.items()
    }
    assert [row["cycle"] for row in rows] == [4, 8, 10]
    for name in ("inner/loss", "outer/loss", "inner/odd", "validation/sum"):
        assert [row[name] for row in rows] == history[name].tolist()
        values = [found[step, name] for step in (4, 8, 10)]
        np.testing.assert_allclose(values, history[name], rtol=1e-6)
    assert {tag for _, tag in found} == set(rows[0]) - {"cycle"}


def test_json_logger_writes_null_for_nan_and_infinity(tmp_path):
    logger = mlox.json_logger(tmp_path / "new" / "m.jsonl")
    logger.log(1, {"a": math.nan, "b": math.inf, "c": 1e-300})
    logger.close()
    text = (tmp_path / "new" / "m.jsonl").read_text()
    assert text == '{"cycle": 1, "a": null, "b": null, "c": 1e-300}\n'


def test_json_logger_drops_a_last_line_that_was_cut_off(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text('{"cycle": 1, "x/loss": 2.0}\n{"cycle": 2, "x/lo')
    mlox.json_logger(file).log(2, {"x/loss": 1.0})
    cycles = [json.loads(line)["cycle"] for line in file.read_text().splitlines()]
    assert cycles == [1, 2]


def test_run_raises_before_anything_runs_if_logdir_cannot_be_written(engine, tmp_path):
    (tmp_path / "file").write_text("")
    collect = Collect()
    with pytest.raises(OSError, match="file"):
        engine.run(
            engine.init(),
            {"inner": BATCHES},
            logdir=tmp_path / "file",
            loggers=[collect],
        )
    assert collect.rows == []
    assert collect.closed == 1


def test_stdout_logger_aligns_lines(capsys):
    logger = mlox.stdout_logger()
    logger.log(5, {"a/rate": -2e-7, "a/loss": 0.5, "cycles_per_second": 12345.678})
    logger.log(1000, {"a/rate": 12.0, "a/loss": 1234.4, "cycles_per_second": 3.0})
    logger.log(1001, {"validation/x": math.nan, "a/rate": 1.0, "a/loss": math.inf})
    logger.close()
    assert capsys.readouterr().out.splitlines() == [
        "       5 1.235e+04/s  a/loss 0.5000      a/rate -2.000e-07",
        "    1000     3.000/s  a/loss 1234        a/rate 12.00",
        "    1001  a/loss inf         validation/x nan         a/rate 1.000",
    ]


def test_lines_and_progress_bar_share_a_terminal(monkeypatch):
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.ones(3),
        tx=TX,
        loss_fn=lambda params, batch, ctx: {
            "loss": params @ params,
            "largest": params.max(),
            "smallest": params.min(),
        },
    )
    engine = mlox.Engine([fit])
    columns = 70
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(end, "w") as screen, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", screen)
        patched.setattr(sys, "stderr", screen)
        engine.run(engine.init(), train_iters=10, log_every=5)
    output = b""
    while True:
        try:
            output += os.read(terminal, 4096)
        except OSError:  # how Linux says that the other end was closed
            break
    os.close(terminal)
    # What remains on a line is what was written after its last carriage return.
    shown = [line.split("\r")[-1] for line in output.decode().split("\r\n")]
    lines = [line for line in shown if re.match(r" +\d+ ", line)]
    assert [int(line.split()[0]) for line in lines] == [5, 10]
    for line in lines:
        assert len(line) <= columns
        assert re.search(r"/s  fit/loss [\d.e-]+ +fit/largest [\d.]+  \+1$", line)
    bar = output.decode().replace("\r\n", "\r").split("\r")[-2]
    assert re.search(r"100%.*10/10.*fit/loss [\d.e-]+", bar), bar


#
# Nothing is lost
#


def failing_loader(good, error):
    yield from (BATCHES[i % 4] for i in range(good))
    raise error


def test_run_raises_the_error_of_the_first_batch_itself(engine):
    collect = Collect()
    with pytest.raises(OSError, match="disk"):
        engine.run(
            engine.init(),
            {"inner": failing_loader(2, OSError("disk"))},
            loggers=[collect],
        )
    with pytest.raises(ValueError, match="'inner' is empty"):
        engine.run(engine.init(), {"inner": []}, loggers=[collect])
    assert collect.rows == []
    assert collect.closed == 2


def test_run_error_of_the_first_trace_holds_the_state_that_was_passed(engine):
    collect = Collect()

    def loss(params, batch, ctx):
        raise ZeroDivisionError("in the loss")

    wrong = make_engine(loss)
    start = wrong.init()
    with pytest.raises(mlox.RunError, match=r"cycle 1 of 1000.*in the loss") as caught:
        wrong.run(start, {"inner": BATCHES}, loggers=[collect])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.state is start
    assert caught.value.cycle == 0
    assert collect.rows == []
    assert collect.closed == 1


@pytest.mark.filterwarnings("error")
def test_run_prints_log_lines_unless_loggers_are_given(engine, capfd):
    engine.run(engine.init(), {"inner": BATCHES}, 4, log_every=2)
    out, err = capfd.readouterr()
    points = [line for line in out.splitlines() if line[:8].strip()]
    assert (len(points), err) == (2, "")
    engine.run(engine.init(), {"inner": BATCHES}, 4, log_every=2, loggers=())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(
    ("cycles_per_dispatch", "good", "where"),
    [(1, 5, "the data of cycle 6 of 10"), (4, 4, "the data of cycles 5 to 8 of 10")],
)
def test_run_error_of_a_loader_holds_all_that_was_computed(
    engine, by_hand, cycles_per_dispatch, good, where, donate
):
    collect = Collect()
    with pytest.raises(mlox.RunError) as caught:
        engine.run(
            engine.init(),
            {"inner": failing_loader(17, OSError("disk is gone"))},
            10,
            log_every=2,
            loggers=[collect],
            cycles_per_dispatch=cycles_per_dispatch,
            donate=donate,
        )
    error = caught.value
    assert f"The run failed at {where}" in str(error)
    assert f"`.state` holds the state after cycle {good}" in str(error)
    assert str(error).endswith("OSError: disk is gone")
    assert isinstance(error.__cause__, OSError)
    assert error.cycle == good
    assert_close(error.state, by_hand[0][good])
    # The window that was open is part of the history.
    assert error.history["cycle"].tolist() == ([2, 4, 5] if good == 5 else [4])
    last = [m["inner/loss"] for m in by_hand[1][good - (1 if good == 5 else 4) : good]]
    np.testing.assert_allclose(error.history["inner/loss"][-1], np.mean(last))
    assert collect.closed == 1


def test_run_error_of_a_short_last_batch_names_drop_last(engine, by_hand):
    short = [*BATCHES[:3], {"x": np.zeros(1)}]
    with pytest.raises(mlox.RunError, match=r"float64\[1\].*drop_last") as caught:
        engine.run(engine.init(), {"inner": short}, 10)
    assert_close(caught.value.state, by_hand[0][1])


def refuse_step_15(step):
    if step == 15:
        raise ArithmeticError("the device says no")
    return step


def loss_that_fails_in_cycle_6(params, batch, ctx):
    probe = jax.pure_callback(refuse_step_15, jax.typeof(ctx.step), ctx.step)
    return {**inner_loss(params, batch, ctx), "probe": probe}


@pytest.mark.parametrize(
    ("options", "failed", "good"),
    [
        ({}, "cycle 6", 5),
        ({"cycles_per_dispatch": 2}, "cycles 5 to 6", 4),
        # The step that fails has taken its state along: back to the last log point.
        ({"donate": True, "log_every": 3}, "cycle 6", 3),
        ({"donate": True, "log_every": 7}, "cycle 6", 0),
    ],
)
def test_run_error_of_the_device_holds_the_last_good_state(
    by_hand, options, failed, good
):
    engine = make_engine(loss_that_fails_in_cycle_6)
    start = engine.init()
    with pytest.raises(mlox.RunError, match="the device says no") as caught:
        engine.run(start, {"inner": BATCHES}, 10, **options)
    error = caught.value
    assert f"at the step of {failed} of 10" in str(error)
    assert error.cycle == good
    for name in ("inner", "outer"):
        found, expected = error.state[name], by_hand[0][good][name]
        np.testing.assert_allclose(found.params, expected.params, rtol=1e-12)
        assert int(found.step) == int(expected.step)
    assert int(start["inner"].step) == 0


@pytest.mark.parametrize("donate", [False, True])
def test_run_error_of_a_validation_holds_the_state_it_saw(engine, by_hand, donate):
    def validation(state):
        if state["outer"].step == 6:
            raise KeyError("no such thing")
        return {"one": 1.0}

    with pytest.raises(mlox.RunError, match="validation after cycle 6 of 10") as caught:
        engine.run(
            engine.init(),
            {"inner": BATCHES},
            10,
            validation=validation,
            valid_every=2,
            log_every=5,
            donate=donate,
        )
    error = caught.value
    assert_close(error.state, by_hand[0][6])
    assert error.history["cycle"].tolist() == [5, 6]
    assert error.history["validation/cycle"].tolist() == [2, 4]
    # From what is kept one goes on: 6 cycles and 4 more are 10.
    state, _ = engine.run(error.state, {"inner": [*BATCHES[2:], *BATCHES[:2]]}, 4)
    assert_close(state, by_hand[0][10])


def test_run_error_of_a_logger_closes_the_others(engine, by_hand):
    loggers = [Collect(), Collect(fail_at=4, fail_at_close=True), Collect()]
    with pytest.raises(mlox.RunError, match="logging after cycle 4 of 10") as caught:
        engine.run(engine.init(), {"inner": BATCHES}, 10, log_every=2, loggers=loggers)
    assert_close(caught.value.state, by_hand[0][4])
    assert caught.value.history["cycle"].tolist() == [2, 4]
    assert [logger.closed for logger in loggers] == [1, 1, 1]
    assert "cannot flush" in caught.value.__cause__.__notes__[0]


def test_run_error_of_a_logger_that_fails_at_its_close_holds_the_end(engine, by_hand):
    loggers = [Collect(fail_at_close=True), Collect()]
    with pytest.raises(
        mlox.RunError, match=r"closing loggers .*after cycle 3"
    ) as caught:
        engine.run(engine.init(), {"inner": BATCHES}, 3, loggers=loggers)
    assert_close(caught.value.state, by_hand[0][3])
    assert caught.value.history["cycle"].tolist() == [1, 2, 3]
    assert loggers[1].closed == 1


@pytest.mark.parametrize("donate", [False, True])
def test_run_interrupted_by_control_c_holds_the_state(engine, by_hand, donate):
    def loader():
        yield from (BATCHES[i % 4] for i in range(13))
        signal.raise_signal(signal.SIGINT)

    collect = Collect()
    with pytest.raises(KeyboardInterrupt) as caught:
        engine.run(
            engine.init(), {"inner": loader()}, 10, donate=donate, loggers=[collect]
        )
    stopped = caught.value
    assert isinstance(stopped, mlox.RunInterrupted)
    assert not isinstance(stopped, Exception)
    assert "The run was interrupted at the data of cycle 5 of 10" in str(stopped)
    assert_close(stopped.state, by_hand[0][4])
    assert collect.closed == 1


def test_system_exit_passes_through_a_run(engine):
    collect = Collect()

    def validation(state):
        sys.exit(3)

    with pytest.raises(SystemExit) as caught:
        engine.run(
            engine.init(),
            {"inner": BATCHES},
            3,
            validation=validation,
            loggers=[collect],
        )
    assert caught.value.code == 3
    assert collect.closed == 1


#
# Arguments
#


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"train_iters": True}, ValueError),
        ({"log_every": 0}, ValueError),
        ({"cycles_per_dispatch": -1}, ValueError),
        ({"validation": lambda state: {}, "valid_every": 0}, ValueError),
        ({"donate": None}, TypeError),
        ({"progress": 1}, TypeError),
        ({"logdir": 3}, TypeError),
        ({"data": []}, TypeError),
        ({"state": {}}, ValueError),
        ({"on_nonfinite": True}, ValueError),
    ],
)
def test_run_raises_before_it_takes_a_batch_and_closes_the_loggers(
    engine, options, kind
):
    logger = Collect()
    untouched = failing_loader(0, AssertionError("a batch was taken"))
    given = {"state": engine.init(), "data": {"inner": untouched}, **options}
    with pytest.raises(kind) as caught:
        engine.run(**given, loggers=[logger])
    assert not isinstance(caught.value, mlox.RunError)
    assert (logger.rows, logger.closed) == ([], 1)


def test_run_closes_loggers_beside_an_entry_that_is_not_one(engine):
    logger = Collect()
    with pytest.raises(TypeError, match="entry of `loggers` is 'metrics"):
        engine.run(engine.init(), {"inner": BATCHES}, loggers=[logger, "metrics.csv"])
    assert logger.closed == 1


def test_run_takes_integers_of_numpy(engine):
    cycles, one = np.int64(4), np.int32(1)
    _, history = engine.run(
        engine.init(),
        {"inner": BATCHES},
        cycles,
        log_every=one,
        cycles_per_dispatch=one,
        loggers=(),
    )
    assert history["cycle"].tolist() == [1, 2, 3, 4]


def test_problem_may_be_called_validation_without_a_validation():
    problem = mlox.Problem.create(
        name="validation",
        params=jnp.ones(()),
        tx=TX,
        loss_fn=lambda p, batch, ctx: p**2,
    )
    engine = mlox.Engine([problem])
    _, history = engine.run(engine.init(), train_iters=1, loggers=())
    assert history["validation/loss"].tolist() == [1.0]


def test_run_raises_if_the_state_was_donated_before(engine):
    state = engine.init()
    jax.jit(lambda state: state, donate_argnums=0)(state)
    with pytest.raises(ValueError, match=r"^state.* was donated to an earlier call"):
        engine.run(state, {"inner": BATCHES}, loggers=())


@pytest.mark.parametrize("size", [1, 3])
def test_resumed_run_records_a_metric_in_the_shape_of_its_batches(tmp_path, size):
    """One of a shape that broadcasts would be mixed with the sum from before."""
    problem = mlox.Problem.create(
        name="x",
        params=jnp.ones(()),
        tx=TX,
        loss_fn=lambda p, batch, ctx: {"loss": p**2, "each": batch - p},
    )
    engine = mlox.Engine([problem])
    options = {"loggers": (), "log_every": 2}
    options |= {"checkpoint": mlox.Checkpoint(tmp_path, every=3)}
    with pytest.raises(mlox.RunError, match="data of"):
        engine.run(engine.init(), {"x": iter([np.ones(4)] * 4)}, 6, **options)
    data = {"x": [np.ones(size)]}
    expected, every = engine.run(engine.init(), data, 8, loggers=(), log_every=1)
    for cycles in (6, 8):  # the second one reads what the first one saved
        state, history = engine.run(engine.init(), data, cycles, resume=True, **options)
    assert float(state["x"].params) == float(expected["x"].params)
    assert history["cycle"].tolist() == [2, 4, 6, 8]
    assert np.isfinite(history["x/loss"]).all()
    each = history["x/each"]
    assert each.shape == (4, size)
    assert np.isnan(each[0]).all()
    # Its first mean is over the cycles since the checkpoint.
    means = every["x/each"][[3, 4, 6]] / 2 + every["x/each"][[3, 5, 7]] / 2
    np.testing.assert_allclose(each[1:], means, rtol=1e-12)


def test_run_error_leaves_tracebacks_of_the_device_to_its_cause():
    def fails(step):
        raise RuntimeError("the simulator has stopped")

    def loss(params, batch, ctx):
        like = jax.ShapeDtypeStruct((), jnp.float64)
        found = jax.pure_callback(fails, like, ctx.step, vmap_method="sequential")
        return jnp.sum(params * ctx.outer.params) + jax.lax.stop_gradient(found)

    broken = make_engine(loss)
    with pytest.raises(mlox.RunError, match="the simulator has stopped") as caught:
        broken.run(broken.init(), {"inner": BATCHES}, 1, loggers=())
    assert "Traceback" not in str(caught.value)
    assert "Traceback" in str(caught.value.__cause__)


MANY = {f"classifier/metric_{i}": np.ones(()) for i in range(300)}


@pytest.mark.parametrize(
    "fails",
    [
        lambda: check_recorded(mlox.EarlyStopping("x/accuracy", "max"), MANY),
        lambda: check_best(mlox.Checkpoint("runs", best="x/accuracy"), MANY),
        lambda: validate(
            lambda state: MANY, Point(1, {}, Totals({}, {}, {}), 0), Rows({}), False
        ),
        lambda: restore_totals(
            Point(1, {}, Totals(MANY, {}, {}), 0), Totals({}, {}, {}), None
        ),
    ],
    ids=["early stopping", "best checkpoint", "validation", "resume"],
)
def test_errors_fit_a_screen_with_hundreds_of_metrics(fails):
    with pytest.raises(ValueError, match="classifier/metric_0") as caught:
        fails()
    assert len(str(caught.value)) <= 1000


def test_log_lines_in_a_file_fit_100_columns_and_show_every_metric(capsys):
    metrics = {f"problem_{i}/loss": 0.5 + i for i in range(12)}
    logger = mlox.stdout_logger()
    logger.log(50, {"cycles_per_second": 9.0, **metrics})
    first, *others = capsys.readouterr().out.splitlines()
    assert others
    assert all(len(line) <= 100 for line in (first, *others))
    shown = " ".join([first, *others]).split()
    assert set(metrics) < set(shown)
    column = first.index("problem_0/loss")
    assert [len(line) - len(line.lstrip()) for line in others] == [column] * len(others)
