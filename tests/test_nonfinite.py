"""Cycles whose numbers are not finite: found on the device, left out, and counted."""

import itertools
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale

import mlox

from .trees import assert_close, with_key_data

BAD = 100.0


def loss(params, batch, ctx):
    """A gradient that is infinite in a batch of BAD, and a loss that is then NaN."""
    odd = jnp.where(batch == BAD, jnp.inf, 1.0)
    return jnp.sum((params - batch) ** 2 * odd) - 0 * odd


def make_engine(loss_fn=loss, tx=None, **options):
    inner = mlox.Problem.create(
        name="inner",
        params=jnp.ones(2),
        tx=optax.sgd(0.1, momentum=0.5) if tx is None else tx,
        loss_fn=loss_fn,
        unroll_steps=2,
        rng=0,
        **options,
    )
    outer = mlox.Problem.create(
        name="outer",
        params=jnp.ones(()),
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: jnp.sum(params * ctx.inner.params**2),
    )
    return mlox.Engine([outer, inner], l2u={"inner": ["outer"]})


@pytest.fixture(scope="module")
def engine():
    return make_engine()


def batches(bad, cycles=10):
    """Two batches for each cycle; those of cycles in `bad`, from 1, hold a BAD one."""
    return [
        BAD if (i // 2 + 1 in bad and i % 2) else 0.1 * i for i in range(2 * cycles)
    ]


def assert_equal_but_steps(found, expected):
    trees = (
        {name: problem.replace(step=0) for name, problem in state.items()}
        for state in (found, expected)
    )
    chex.assert_trees_all_equal(*map(with_key_data, trees))


LAYOUTS = [{}, {"cycles_per_dispatch": 4}, {"cycles_per_dispatch": 3, "donate": True}]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("log_every", [1, 4, 10])
def test_raise_holds_the_state_before_the_cycle(engine, layout, log_every):
    data = batches([6, 8])
    expected, history = engine.run(
        engine.init(), {"inner": data}, 5, loggers=(), log_every=1
    )
    message = (
        r"failed at the step of cycles? 6.* of 10\. `.state` holds the state after "
        r"cycle 5.* FloatingPointError: the loss or the gradient of 'inner', 'outer' "
        r"was not finite in cycle 6.*on_nonfinite='skip'"
    )
    if log_every == 1 and not layout:
        message = message.replace("cycles?", "cycle")
    with pytest.raises(mlox.RunError, match=message) as caught:
        engine.run(
            engine.init(),
            {"inner": data},
            10,
            loggers=(),
            log_every=log_every,
            on_nonfinite="raise",
            **layout,
        )
    error = caught.value
    assert error.cycle == 5
    assert_close(error.state, expected)  # of another program, by rounding
    assert error.history["cycle"][-1] == 5
    logged = [0, *error.history["cycle"].tolist()]
    for row, (start, end) in enumerate(itertools.pairwise(logged)):
        mean = history["inner/loss"][start:end].mean()
        np.testing.assert_allclose(error.history["inner/loss"][row], mean, rtol=1e-12)
    again, _ = engine.run(error.state, {"inner": [0.0]}, 1, loggers=())
    assert all(np.isfinite(again["inner"].params))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_skip_goes_on_from_the_state_before_and_counts(engine, layout):
    data = batches([2, 6, 7])
    good = [x for i in (0, 2, 3, 4, 7, 8, 9) for x in data[2 * i : 2 * i + 2]]
    expected, _ = engine.run(engine.init(), {"inner": good}, 7, loggers=())
    state, history = engine.run(
        engine.init(),
        {"inner": data},
        10,
        loggers=(),
        log_every=1 if not layout else 10,
        on_nonfinite="skip",
        **layout,
    )
    assert_equal_but_steps(state, expected)
    assert int(state["inner"].step) == 20
    assert history["run/nonfinite"].sum() == 3
    assert history["inner/nonfinite"].sum() == 3
    if layout:
        assert np.isfinite(history["inner/loss"]).all()
    else:
        left_out = np.isnan(history["inner/loss"])
        assert (left_out == (history["run/nonfinite"] == 1)).all()


def test_means_are_over_finite_cycles(engine):
    data = batches([2])
    _, every = engine.run(
        engine.init(),
        {"inner": data},
        4,
        loggers=(),
        log_every=1,
        on_nonfinite="skip",
    )
    _, whole = engine.run(
        engine.init(),
        {"inner": data},
        4,
        loggers=(),
        log_every=4,
        on_nonfinite="skip",
    )
    mean = np.nanmean(every["inner/loss"])
    np.testing.assert_allclose(whole["inner/loss"], mean, rtol=1e-12)


@pytest.mark.parametrize("layout", [{}, {"donate": True, "cycles_per_dispatch": 2}])
def test_restore_goes_on_from_the_last_checkpoint(engine, tmp_path, layout):
    data = batches([3, 7])
    folder = mlox.Checkpoint(tmp_path, every=4, keep=9)
    state, history = engine.run(
        engine.init(),
        {"inner": data},
        10,
        loggers=(),
        log_every=2,
        checkpoint=folder,
        on_nonfinite="restore",
        **layout,
    )
    # From the start at cycle 3, from the state after cycle 4 at cycle 7.
    expected = engine.init()
    for cycles in ([4], [8, 9, 10]):
        part = [x for i in cycles for x in data[2 * i - 2 : 2 * i]]
        expected, _ = engine.run(expected, {"inner": part}, len(cycles), loggers=())
    assert_equal_but_steps(state, expected)
    assert history["run/nonfinite"].tolist() == [0, 1, 0, 1, 0]


def test_restore_survives_a_signal_between_checkpoints(engine, tmp_path):
    """A signal saves off the schedule, which must not move what faults go back to."""
    data = batches([7])

    def run(folder, stop=None, **options):
        def stopper(state):
            if int(state["outer"].step) == stop:
                signal.raise_signal(signal.SIGTERM)
            return {}

        return engine.run(
            engine.init(),
            {"inner": data},
            10,
            loggers=(),
            log_every=1,
            validation=stopper,
            checkpoint=mlox.Checkpoint(folder, every=4),
            on_nonfinite="restore",
            **options,
        )

    expected = run(tmp_path / "whole")
    with pytest.raises(mlox.RunInterrupted, match="Stopped by SIGTERM"):
        run(tmp_path / "parts", stop=6)
    found = run(tmp_path / "parts", resume=True)
    chex.assert_trees_all_equal(*map(with_key_data, (found[0], expected[0])))
    assert found[1]["run/nonfinite"].tolist() == expected[1]["run/nonfinite"].tolist()


def test_skip_draws_other_keys_in_the_next_cycle():
    """Else a fault that comes from a draw would come again for ever."""

    def unlucky(params, batch, ctx):
        bad = jax.random.uniform(ctx.rng) < 0.3
        return jnp.sum(params**2) * jnp.where(bad, jnp.nan, 1.0)

    engine = make_engine(unlucky)
    state, history = engine.run(
        engine.init(), train_iters=40, loggers=(), log_every=40, on_nonfinite="skip"
    )
    assert 5 < history["run/nonfinite"][0] < 35
    assert np.isfinite(state["inner"].params).all()


@jax.numpy_dtype_promotion("standard")  # which this optimizer of optax needs
def test_infinity_of_an_optimizer_from_the_start_does_not_count():
    tx = optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2, accumulation_size=1)
    )
    engine = mlox.Engine(
        [
            mlox.Problem.create(
                name="x",
                params=jnp.ones(2),
                tx=tx,
                loss_fn=lambda params, batch, ctx: jnp.sum(params**2),
            )
        ]
    )
    init = engine.init()
    infinite = [
        leaf
        for leaf in jax.tree.leaves(init["x"].opt_state)
        if not bool(np.isfinite(leaf).all())
    ]
    assert infinite
    _, history = engine.run(
        init, train_iters=3, loggers=(), log_every=3, on_nonfinite="skip"
    )
    assert history["run/nonfinite"].tolist() == [0]


def test_overflow_that_a_loss_scale_handles_does_not_count():
    engine = make_engine(
        lambda params, batch, ctx: jnp.sum(params**2).astype(jnp.float32) * 1e30,
        loss_scale=DynamicScale(scale=jnp.float32(2.0**60)),
    )
    state, history = engine.run(
        engine.init(), train_iters=3, loggers=(), log_every=3, on_nonfinite="raise"
    )
    assert history["run/nonfinite"].tolist() == [0]
    assert float(state["inner"].loss_scale.scale) < 2.0**60


def test_infinite_momentum_counts():
    """The sign of an infinite gradient is finite, but what it leaves behind is not."""
    engine = make_engine(
        lambda params, batch, ctx: jnp.where(batch == BAD, jnp.inf, 1.0) * params.sum(),
        tx=optax.lion(0.1),
    )
    state, history = engine.run(
        engine.init(),
        {"inner": batches([2])},
        4,
        loggers=(),
        log_every=1,
        on_nonfinite="skip",
    )
    assert history["inner/nonfinite"].tolist() == [0, 1, 0, 0]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state["inner"].opt_state))


def test_raise_saves_no_state_that_is_not_finite(engine, tmp_path):
    with pytest.raises(mlox.RunError, match="not finite in cycle 3"):
        engine.run(
            engine.init(),
            {"inner": batches([3])},
            10,
            loggers=(),
            log_every=10,
            checkpoint=mlox.Checkpoint(tmp_path, every=2),
            on_nonfinite="raise",
        )
    assert int(mlox.restore(tmp_path, engine.init())["outer"].step) == 2


@pytest.mark.parametrize(
    ("first", "second", "cycles", "count"),
    [
        (None, "skip", [1, 2, 3, 4, 5, 6, 7, 8], 0),
        (None, "restore", [1, 2, 3, 4, 5, 6, 7, 8], 0),
        ("skip", "restore", [1, 2, 3, 5, 6, 7, 8], 1),
        ("skip", "raise", [6, 7, 8], 0),
        ("skip", None, [6, 7, 8], None),
    ],
)
def test_resumed_run_may_have_another_policy(
    engine, tmp_path, first, second, cycles, count
):
    """A mean is over equal cycles, and a count of those that were left out."""
    data = batches([4] if first else [])
    _, every = engine.run(
        engine.init(), {"inner": data}, 8, loggers=(), log_every=1, on_nonfinite=first
    )
    options = {
        "train_iters": 8,
        "loggers": (),
        "log_every": 8,
        "checkpoint": mlox.Checkpoint(tmp_path, every=5),
    }
    with pytest.raises(mlox.RunError, match="data of"):
        engine.run(
            engine.init(), {"inner": iter(data[:12])}, on_nonfinite=first, **options
        )
    state, history = engine.run(
        engine.init(), {"inner": data}, on_nonfinite=second, resume=True, **options
    )
    assert int(state["outer"].step) == 8
    mean = np.mean([every["inner/loss"][i - 1] for i in cycles])
    np.testing.assert_allclose(history["inner/loss"], [mean], rtol=1e-12)
    counts = history.get("run/nonfinite")
    assert (None if counts is None else counts.tolist()) == (
        None if count is None else [count]
    )


def test_loss_that_becomes_nan_is_noted_once(engine, capsys):
    data = {"inner": batches([3], cycles=9)}
    engine.run(engine.init(), data, 9, log_every=1)
    lines = capsys.readouterr().out.splitlines()
    notes = [line for line in lines if "no longer finite" in line]
    assert notes == [
        "       3  inner/loss, outer/loss no longer finite: see `on_nonfinite` to stop "
        "there, to skip such"
    ]
    below = lines[lines.index(notes[0]) + 1]
    assert below == "          cycles, or to go back to a checkpoint"
    engine.run(engine.init(), data, 9, log_every=1, on_nonfinite="skip")
    assert "no longer finite" not in capsys.readouterr().out


@pytest.mark.parametrize("log", [(), ("csv",)])
def test_loss_that_becomes_nan_is_warned_of_once_where_no_logger_takes_notes(
    engine, tmp_path, log
):
    data = {"inner": batches([3], cycles=9)}
    loggers = [mlox.csv_logger(tmp_path / "log.csv") for _ in log]
    with pytest.warns(UserWarning, match="finite") as caught:
        engine.run(engine.init(), data, 9, log_every=1, loggers=loggers)
    assert [str(warning.message) for warning in caught] == [
        "Cycle 3: inner/loss, outer/loss no longer finite: see `on_nonfinite` to stop "
        "there, to skip such cycles, or to go back to a checkpoint."
    ]
    for policy in ("skip", "restore"):
        engine.run(
            engine.init(),
            data,
            9,
            loggers=(),
            on_nonfinite=policy,
            checkpoint=mlox.Checkpoint(tmp_path / policy),
        )
