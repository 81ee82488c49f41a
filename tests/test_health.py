"""What a run says of answers that lag, and of programs that train well: nothing."""

import warnings

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._run import health
from mlox._run.health import Watch

from . import training

BATCHES = [np.ones(2), np.full(2, 1.5)]
WARNING = "'fit' lags behind 'penalty'"


def make_engine(rate=1e-4, method=None, **options):
    """A lower whose answer is far from where it should be, unless its rate is large."""
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.full(2, 0.1),
        tx=optax.sgd(rate),
        unroll_steps=2,
        method=method,
        loss_fn=lambda params, batch, ctx: jnp.sum(
            (params - batch) ** 2 + jnp.exp(ctx.penalty.params) * params**2
        ),
        **options,
    )
    penalty = mlox.Problem.create(
        name="penalty",
        params=jnp.zeros(2),
        tx=optax.sgd(0.01),
        loss_fn=lambda params, batch, ctx: jnp.sum((ctx.fit.params - 2.0) ** 2),
    )
    return mlox.Engine(
        [penalty, fit], u2l={"penalty": ["fit"]}, l2u={"fit": ["penalty"]}
    )


@pytest.fixture(scope="module")
def engine():
    return make_engine()


class Notes:
    """A logger that keeps what it is told."""

    def __init__(self):
        self.notes = []

    def log(self, step, metrics):
        pass

    def note(self, step, text):
        self.notes.append((step, text))

    def close(self):
        pass


def run(engine, train_iters=48, **options):
    """Run an engine, and return its warnings and notes as well."""
    notes = Notes()
    options = {"log_every": 8, "loggers": [notes], **options}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = engine.run(engine.init(), {"fit": BATCHES}, train_iters, **options)
    return *found, [str(warning.message) for warning in caught], notes.notes


#
# The rule
#


def watch_of(*windows, cycles=10):
    """Observe windows, each given by the mean of the gap, its spread, and the loss."""
    watch = Watch("u", "l")
    for mean, spread, loss in windows:
        means = {"u/l/gap": np.array(mean), "u/loss": np.array(loss)}
        squares = {"u/l/gap": cycles * (mean**2 + spread**2)}
        watch = health.observe(watch, cycles, means, squares)
    return watch


LAGS = (0.5, 0.1, 1.0)


@pytest.mark.parametrize(
    ("windows", "confirms"),
    [
        ([LAGS, LAGS], False),  # the first one does not count
        ([LAGS, LAGS, LAGS], True),
        ([LAGS, LAGS, (0.5, 0.1, -1.0)], True),
        ([LAGS, LAGS, (0.5, 0.2, 1.0)], False),  # noise
        ([LAGS, LAGS, (-0.5, 0.1, 1.0)], False),  # settled
        ([LAGS, LAGS, (0.5, 0.1, 3.0)], False),  # small
        ([LAGS, LAGS, (np.nan, 0.1, 1.0)], False),
        ([LAGS, LAGS, (0.5, np.inf, 1.0)], False),  # of an older checkpoint
        ([LAGS] * 4, False),  # asked before, and not confirmed
        ([LAGS] * 5, True),
        ([LAGS, LAGS, (0.0, 0.0, 1.0), LAGS], False),
    ],
)
def test_suspicion_needs_two_windows_in_a_row(windows, confirms):
    assert watch_of(*windows).should_confirm == confirms


def test_short_intervals_are_taken_together():
    watch = watch_of(*[LAGS] * 5, cycles=3)
    assert (watch.windows, watch.cycles) == (1, 6)
    assert not watch.should_confirm
    watch = watch_of(*[LAGS] * 9, cycles=3)
    assert (watch.windows, watch.cycles, watch.streak) == (3, 9, 2)
    assert watch.should_confirm
    np.testing.assert_allclose(watch.spread, 0.1)


@pytest.mark.parametrize(
    ("found", "confirmed"),
    [
        ((0.01, 9.0, -0.9), False),
        ((0.5, 0.7, 0.8), False),
        ((0.5, 9.0, 0.8), True),
        ((0.5, 0.1, 0.8), True),
        ((0.5, 1.0, -0.5), True),
        ((2.0, 1.0, 1.0), True),
        ((np.nan, np.nan, np.nan), False),
    ],
)
def test_suspicion_is_confirmed_by_a_newton_step(found, confirmed):
    assert health.is_confirmed(*found) == confirmed


#
# Runs
#


@pytest.mark.parametrize(
    "options",
    [{}, {"cycles_per_dispatch": 5, "donate": True, "on_nonfinite": "skip"}],
)
def test_run_warns_once_of_a_lower_that_lags(engine, options):
    _, history, messages, notes = run(engine, **options)
    [message], [(cycle, note)] = messages, notes
    assert message == f"Cycle {cycle}: {note}"
    assert note.startswith(WARNING)
    assert cycle == (35 if options else 24)  # after windows of 10, 10 and 15 cycles
    row = history["cycle"].tolist().index(cycle)
    assert f"off by about {history['penalty/fit/gap'][row]:.2g} (mean of" in note
    assert "unroll_steps" in note
    assert "mlox.check" in note
    assert len(message) < 900


def test_run_says_nothing_of_a_lower_that_is_solved():
    assert run(make_engine(0.2))[2:] == ([], [])


@pytest.mark.parametrize(
    "options",
    [
        {"method": mlox.FiniteDifference()},
        {"method": mlox.Implicit(mlox.Identity())},
        {"method": mlox.SAMA()},
        {"method": mlox.Unrolled()},
        {"project": lambda params: params},
    ],
    ids=["finite difference", "identity", "sama", "unrolled", "projected"],
)
def test_gaps_without_a_linear_system_are_not_judged(options):
    engine = make_engine(**options)
    assert engine.traced.list_screened(engine.init()) == ()


def test_run_warns_once_of_a_system_that_is_not_solved():
    solver = mlox.Neumann(iterations=1, step=0.01)
    engine = make_engine(0.2, mlox.Implicit(solver))
    _, history, messages, notes = run(engine)
    assert notes[0][0] == 16  # the end of the second window
    residual = history["penalty/fit/residual"][0]
    assert [text for text in messages if "not solved: a" in text] == messages
    assert f"residual of {residual:.2g} is left" in messages[0]
    assert len(messages) == 1


def test_run_goes_on_if_the_confirmation_fails(engine, monkeypatch):
    def fail(*_):
        raise MemoryError("too large")

    step = type(engine.traced)
    monkeypatch.setattr(step, "confirm", fail)
    fresh = make_engine()  # nothing is compiled for it
    state, _, messages, _ = run(fresh)
    assert int(state["penalty"].step) == 48
    [message] = messages
    assert "the solve that would confirm it failed (MemoryError)" in message


def test_screen_changes_no_number(engine):
    """The program does the same with and without it, but for a sum of squares."""
    state, _, messages, _ = run(engine)
    assert messages
    step = engine.compile()
    expected = engine.init()
    for _ in range(48):
        batches = {"penalty": None, "fit": np.stack(BATCHES)}
        expected, _ = step(expected, batches)
    np.testing.assert_allclose(state["fit"].params, expected["fit"].params, rtol=1e-12)


def test_resumed_run_warns_where_a_run_that_never_stopped_does(engine, tmp_path):
    def save(name, every):
        return mlox.Checkpoint(tmp_path / name, every=every, keep=9)

    expected = run(engine)
    with pytest.raises(mlox.RunError, match="data of"):
        engine.run(
            engine.init(),
            {"fit": iter(BATCHES * 22)},
            48,
            loggers=(),
            log_every=8,
            checkpoint=save("parts", 19),
        )
    found = run(engine, checkpoint=save("parts", 19), resume=True)
    assert found[2:] == ([*expected[2]], [(19, "resumed"), *expected[3]])
    # Told once, and saved so.
    run(engine, checkpoint=save("whole", 30))
    assert run(engine, 64, checkpoint=save("whole", 30), resume=True)[2] == []


def test_resumed_run_reads_checkpoints_without_squares(engine):
    from mlox._run.dispatch import Totals
    from mlox._run.resume import restore_totals
    from mlox._run.run_state import Point

    gap = {"penalty/fit/gap": jnp.ones(())}
    zeros = Totals(gap, {}, {"penalty/fit/gap": jnp.zeros(())})
    point = Point(3, {}, Totals(gap, {}, {}), 0)
    restored = restore_totals(point, zeros, None).totals
    assert np.isinf(restored.squares["penalty/fit/gap"])
    assert restored.sums == gap


def test_resumed_run_begins_new_means_where_a_checkpoint_has_no_gaps():
    from mlox._run.dispatch import Totals
    from mlox._run.resume import restore_totals
    from mlox._run.run_state import Point

    loss, gap = {"fit/loss": jnp.zeros(())}, {"penalty/fit/gap": jnp.zeros(())}
    zeros = Totals({**loss, **gap}, {}, gap)
    saved = Totals({"fit/loss": np.float32(7.0)}, {}, {})
    restored = restore_totals(Point(3, {}, saved, 0), zeros, None)
    assert restored == Point(3, {}, zeros, 3)
    saved = saved._replace(sums={**saved.sums, "fit/error": np.float32(1.0)})
    with pytest.raises(ValueError, match=r"recorded other metrics: .*fit/error"):
        restore_totals(Point(3, {}, saved, 0), zeros, None)


#
# Programs as people train them
#

# Their solvers leave most of the system, so that the gap is noise; which is said.
UNSOLVED = {
    "network, small steps",
    "logistic, 1000 unknowns",
    "network, Adam",
    "network, SGD with momentum",
    "network, wide",
    "network, dropout",
    "network, batch norm",
}


def list_alarms(make):
    """Train a program, and return the texts that say that a lower lags, and others."""
    program = make(np.random.default_rng(0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program.engine.run(
            program.engine.init(),
            program.data,
            program.cycles,
            log_every=10,
            cycles_per_dispatch=10,
            loggers=(),
        )
    texts = [str(warning.message) for warning in caught]
    alarms = [text for text in texts if "lags behind" in text]
    return alarms, [text for text in texts if text not in alarms]


@pytest.mark.slow
@pytest.mark.parametrize("name", training.HEALTHY)
def test_programs_that_train_well_raise_no_alarm(name):
    alarms, others = list_alarms(training.HEALTHY[name])
    assert alarms == []
    assert all("is not solved: a" in text for text in others)
    assert bool(others) == (name in UNSOLVED)


@pytest.mark.slow
@pytest.mark.parametrize("name", training.SICK)
def test_programs_whose_lower_lags_raise_an_alarm(name):
    alarms, others = list_alarms(training.SICK[name])
    assert others if name in UNSOLVED else alarms
