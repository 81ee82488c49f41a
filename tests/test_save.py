"""mlox.save, for loops of the user's own: what it writes, and what it leaves alone."""

import shutil

import chex
import jax
import numpy as np
import optax
import pytest

import mlox

from .small import BATCH, single
from .typed_loop import train

BATCHES = {"fit": jax.tree.map(lambda x: np.asarray(x)[None], BATCH)}


@pytest.fixture(scope="module")
def engine():
    return mlox.Engine([single(tx=optax.adam(0.1), rng=3).problems[0]])


def loop(engine, folder, cycles):
    """Go on from the newest save, if there is one, and save every second cycle."""
    state, first = engine.init(), 0
    if folder.exists():
        state = mlox.restore(folder, state)
        first = int(state["fit"].step)
    step = engine.compile()
    for cycle in range(first + 1, cycles + 1):
        state, _ = step(state, BATCHES)
        if cycle % 2 == 0:
            path = mlox.save(folder, state, cycle=cycle)
            assert path == folder / "checkpoints" / f"cycle_{cycle}"
            assert path.is_dir()
    return state


def test_loop_that_goes_on_has_the_bits_of_one_that_never_stopped(engine, tmp_path):
    whole = loop(engine, tmp_path / "whole", 6)
    loop(engine, tmp_path / "parts", 3)  # the third cycle is lost
    chex.assert_trees_all_equal(whole, loop(engine, tmp_path / "parts", 6))
    earlier = mlox.restore(tmp_path / "parts", engine.init(), cycle=2)
    assert int(earlier["fit"].step) == 2
    # A run starts from a save, and counts its own cycles.
    state, history = engine.run(earlier, {"fit": [BATCH]}, 2, loggers=())
    assert int(state["fit"].step) == 4
    assert history["cycle"].tolist() == [1, 2]


def test_save_deletes_what_a_killed_one_left_and_nothing_else(engine, tmp_path):
    place = tmp_path / "checkpoints"
    saved = mlox.save(tmp_path, engine.init(), cycle=1)
    for name in ("cycle_2.orbax-checkpoint-tmp", "cycle_3.orbax-checkpoint-tmp"):
        shutil.copytree(saved, place / name)
    (place / "cycle_2.orbax-checkpoint-tmp-0").mkdir()
    (place / "cycle_2.orbax-checkpoint-tmp-0" / "notes.txt").touch()  # of somebody
    (place / "2").mkdir()
    mlox.save(tmp_path, engine.init(), cycle=2)
    assert sorted(path.name for path in place.iterdir()) == [
        "2",
        "cycle_1",
        "cycle_2",
        "cycle_2.orbax-checkpoint-tmp-0",
        "cycle_3.orbax-checkpoint-tmp",
    ]


def test_save_stays_out_of_the_folder_of_a_run_also_from_within_it(engine, tmp_path):
    """A save of a later cycle, made while the run had none, changes nothing."""
    state, _ = engine.run(
        engine.init(),
        {"fit": [BATCH]},
        2,
        checkpoint=mlox.Checkpoint(tmp_path, every=1),
        loggers=(),
    )
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(
        mlox.save(tmp_path / "own", state, cycle=9), checkpoints / "cycle_9"
    )
    with pytest.raises(ValueError, match="the checkpoints of a run"):
        mlox.save(tmp_path, state, cycle=10)


def test_typed_loop_runs(tmp_path):
    assert int(train(tmp_path, 2)["x"].step) == 4
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
