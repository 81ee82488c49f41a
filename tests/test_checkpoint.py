"""Checkpoints: a run that stops and goes on is one that never stopped."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._checkpoint import leaves
from mlox._checkpoint.folder import CheckpointFolder
from mlox._checkpoint.save import open_writer

from . import event_files
from .conftest import UNCACHED

# A read that fails leaves TensorStore with answers for an event loop that Orbax closed.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

DATA = {"x": np.arange(12.0).reshape(6, 2), "y": np.arange(6.0) % 3}


def inner_loss(params, batch, ctx):
    noise = jax.random.normal(ctx.rng, params["w"].shape)
    answer = batch["x"] @ (params["w"] + 0.01 * noise)
    mean = 0.9 * ctx.model_state + 0.1 * answer.mean()
    weight = jnp.exp(ctx.outer.params)
    loss = jnp.mean(jnp.tanh(answer - batch["y"] - mean) ** 2)
    penalty = weight * jnp.sum(params["w"] ** 2)
    return {"loss": loss + penalty, "model_state": mean, "mean": mean}


def outer_loss(params, batch, ctx):
    return jnp.mean((batch["x"] @ ctx.inner.params["w"] - batch["y"]) ** 2) + params**2


def make_engine(width=2, steps=2, outer_tx=None):
    outer = mlox.Problem.create(
        name="outer",
        params=jnp.array(-1.0),
        tx=optax.adam(0.1) if outer_tx is None else outer_tx,
        loss_fn=outer_loss,
    )
    inner = mlox.Problem.create(
        name="inner",
        params={"w": jnp.full(width, 0.1), "none": jnp.zeros((0, 2))},
        tx=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05)),
        loss_fn=inner_loss,
        model_state=jnp.zeros(()),
        rng=jax.random.key(3),
        unroll_steps=steps,
    )
    return mlox.Engine(
        [outer, inner], u2l={"outer": ["inner"]}, l2u={"inner": ["outer"]}
    )


@pytest.fixture(scope="module")
def engine():
    return make_engine()


def series():
    inner = mlox.shuffled(DATA, 2, seed=1)
    return {"inner": inner, "outer": [DATA, {"x": -DATA["x"], "y": DATA["y"]}]}


def bits(tree):
    """All the bits of a state or a history, by path."""
    return {
        jax.tree_util.keystr(path): (
            np.asarray(
                jax.random.key_data(x)
                if jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key)
                else x
            ).tobytes()
        )
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


class StopError(Exception):
    pass


def score(state):
    return {"error": jnp.sum(state["inner"].params["w"] ** 2)}


def run(engine, cycles=12, stop_at=None, data=None, **options):
    """Run; with `stop_at`, fail in the first validation from that cycle on."""
    seen = []

    def validation(state):
        seen.append(int(state["outer"].step))
        if stop_at is not None and seen[-1] >= stop_at:
            raise StopError
        return score(state)

    given = {"loggers": (), "validation": validation, "valid_every": 1, "log_every": 4}
    data = series() if data is None else data
    return engine.run(engine.init(), data, cycles, **{**given, **options})


OPTIONS = {
    "one cycle per dispatch": {},
    "three cycles": {"cycles_per_dispatch": 3},
    "donated": {"donate": True, "cycles_per_dispatch": 2},
    "stopping": {
        "early_stopping": mlox.EarlyStopping("validation/error", "min", patience=3)
    },
    "donated and stopping": {
        "donate": True,
        "early_stopping": mlox.EarlyStopping("inner/loss", "max", patience=2),
    },
    "skipping": {"on_nonfinite": "skip"},
}


QUICK = ("donated and stopping",)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, options in OPTIONS.items()
    ],
)
@pytest.mark.parametrize("async_", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_resume_returns_the_bits_of_a_run_that_never_stopped(
    engine, tmp_path, options, async_
):
    expected = run(engine, **options)
    for stop_at, every in [(1, 1), (5, 2), (8, 3), (12, 5)]:
        folder = mlox.Checkpoint(tmp_path / str(stop_at), every=every, async_=async_)
        stops = contextlib.nullcontext()
        if stop_at <= expected[1]["validation/cycle"][-1]:
            stops = pytest.raises(mlox.RunError, match="StopError")
        with stops:
            run(engine, stop_at=stop_at, checkpoint=folder, **options)
        found = run(engine, checkpoint=folder, resume=True, **options)
        assert bits(found) == bits(expected)
        assert list(found[1]) == list(expected[1])


def test_resume_returns_a_run_that_has_ended_or_makes_it_longer(engine, tmp_path):
    folder = mlox.Checkpoint(tmp_path)
    first = run(engine, 8, checkpoint=folder)
    again = run(engine, 8, stop_at=0, checkpoint=folder, resume=True)
    assert bits(again) == bits(first)
    longer = run(engine, 12, checkpoint=folder, resume=True)
    assert bits(longer) == bits(run(engine, 12))


def test_resume_begins_where_there_is_no_checkpoint(engine, tmp_path):
    folder = mlox.Checkpoint(tmp_path / "new")
    found = run(engine, 4, checkpoint=folder, resume=True)
    assert bits(found) == bits(run(engine, 4))


def test_run_raises_in_a_folder_that_holds_a_run(engine, tmp_path):
    folder = mlox.Checkpoint(tmp_path)
    run(engine, 4, checkpoint=folder)
    message = "holds checkpoints up to cycle 4.*`resume=True`, or choose another"
    with pytest.raises(FileExistsError, match=message):
        run(engine, 4, checkpoint=folder)


#
# Logs
#


def test_logs_of_resumed_runs_have_no_holes_and_no_doubled_steps(engine, tmp_path):
    def files(folder):
        return {
            "logdir": folder,
            "loggers": [mlox.csv_logger(folder / "table.csv")],
            "log_every": 1,
        }

    run(engine, **files(tmp_path / "whole"))
    folder = mlox.Checkpoint(tmp_path / "saved", every=5)
    for stop_at in (3, 8, 11):
        with pytest.raises(mlox.RunError):
            run(
                engine,
                stop_at=stop_at,
                checkpoint=folder,
                resume=True,
                **files(tmp_path / "parts"),
            )
    with (tmp_path / "parts/metrics.jsonl").open("a") as torn:
        torn.write('{"cycle": 11, "inn')
    run(engine, checkpoint=folder, resume=True, **files(tmp_path / "parts"))

    def rows(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        for row in found:
            row.pop("cycles_per_second", None)
        return found

    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    tables = [
        [line.split(",") for line in (tmp_path / x / "table.csv").read_text().split()]
        for x in ("parts", "whole")
    ]
    speed = tables[0][0].index("cycles_per_second")
    for table in tables:
        for row in table:
            row.pop(speed)
    assert tables[0] == tables[1]
    scalars = [event_files.scalars(tmp_path / x) for x in ("parts", "whole")]
    for found in scalars:
        found.pop("cycles_per_second")
    assert scalars[0] == scalars[1]
    assert scalars[0]["inner/loss"].keys() == set(range(1, 13))


#
# What is kept
#


def find_cycles(path):
    """List the cycles of the checkpoints in a folder of a run."""
    return CheckpointFolder(path).cycles


def locate(path, cycle):
    return path / "checkpoints" / f"cycle_{cycle}"


def test_newest_and_best_are_kept_also_by_a_resumed_run(engine, tmp_path):
    given = {"keep": 2, "best": "validation/error", "mode": "max", "every": 2}
    folder = mlox.Checkpoint(tmp_path, **given)
    run(engine, 8, checkpoint=folder)
    _, history = run(engine, 16, checkpoint=folder, resume=True)
    scores = history["validation/error"][1::2]
    best = 2 * (1 + int(np.argmax(scores)))
    assert find_cycles(tmp_path) == sorted({best, 14, 16})
    state = mlox.restore(tmp_path, engine.init(), cycle="best")
    assert float(score(state)["error"]) == scores.max()
    assert int(mlox.restore(tmp_path, engine.init(), cycle=14)["outer"].step) == 14
    assert int(mlox.restore(tmp_path, engine.init())["outer"].step) == 16


def test_resume_with_another_best_goes_by_that_one_alone(engine, tmp_path):
    given = {"keep": 1, "every": 1}
    options = {"best": "validation/error", "mode": "min"}
    folder = mlox.Checkpoint(tmp_path, **given, **options)
    run(engine, 4, checkpoint=folder, log_every=1)
    assert find_cycles(tmp_path) == [1, 4]
    options = {"best": "inner/loss", "mode": "max"}
    folder = mlox.Checkpoint(tmp_path, **given, **options)
    _, history = run(engine, 12, checkpoint=folder, resume=True, log_every=1)
    losses = history["inner/loss"]
    best = max([1, *range(4, 13)], key=lambda cycle: losses[cycle - 1])
    assert find_cycles(tmp_path) == sorted({best, 12})
    found = mlox.restore(tmp_path, engine.init(), cycle="best")
    assert int(found["outer"].step) == best


def test_restore_raises_if_there_is_no_such_checkpoint(engine, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"No checkpoints: .*no' is not a folder"
    ):
        mlox.restore(tmp_path / "no", engine.init())
    with pytest.raises(FileNotFoundError, match=r"No checkpoint 'newest' .*are \[\]"):
        mlox.restore(tmp_path, engine.init())
    run(engine, 4, checkpoint=mlox.Checkpoint(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"No checkpoint 3 .* there are \[4\]"):
        mlox.restore(tmp_path, engine.init(), cycle=3)
    message = r"No checkpoint 'best' .*kept no best one; there are \[4\]. Pass `best="
    with pytest.raises(FileNotFoundError, match=message):
        mlox.restore(tmp_path, engine.init(), cycle="best")


#
# Faults of files
#


def find_data(folder):
    """List the files that hold the numbers of the state."""
    return sorted(folder.glob("state/**/d/*"))


def truncate(folder):
    for file in find_data(folder):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(folder):
    """Change one bit of each file of arrays."""
    for file in find_data(folder):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


def without_arrays(folder):
    shutil.rmtree(folder / "state")


def empty_notes(folder):
    (folder / "mlox" / "metadata").write_text("")


def change_notes(folder):
    """Change what is valid JSON before and after: where the data go on."""
    file = folder / "mlox" / "metadata"
    text = file.read_text()
    assert '"positions": {' in text
    file.write_text(text.replace('"positions": {', '"positions": {"x": 1, '))


def without_notes(folder):
    (folder / "mlox" / "metadata").unlink()


HARMS = [truncate, flip, without_arrays, empty_notes, change_notes, without_notes]


@pytest.mark.parametrize("harm", HARMS)
def test_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    engine, tmp_path, harm
):
    folder = mlox.Checkpoint(tmp_path, every=2)
    run(engine, 6, checkpoint=folder)
    harm(locate(tmp_path, 6))
    with pytest.warns(
        UserWarning, match=r"cycle_6' is broken .*after cycle 4 is taken"
    ):
        state = mlox.restore(tmp_path, engine.init())
    assert int(state["outer"].step) == 4
    with pytest.raises(ValueError, match=r"cycle_6' is broken"):
        mlox.restore(tmp_path, engine.init(), cycle=6)
    with pytest.warns(
        UserWarning, match=r"cycle_6' is broken .*after cycle 4 is taken"
    ):
        found = run(engine, 8, checkpoint=folder, resume=True)
    assert bits(found) == bits(run(engine, 8))
    assert (tmp_path / "checkpoints" / "broken-6-0").is_dir()
    assert find_cycles(tmp_path) == [4, 6, 8]


def test_resume_raises_if_no_checkpoint_is_intact(engine, tmp_path):
    folder = mlox.Checkpoint(tmp_path, every=2)
    run(engine, 4, checkpoint=folder)
    truncate(locate(tmp_path, 2))
    empty_notes(locate(tmp_path, 4))
    with pytest.raises(ValueError, match=r"No checkpoint is intact.*_4' is.*_2' is"):
        run(engine, 4, checkpoint=folder, resume=True)
    assert find_cycles(tmp_path) == [2, 4]


@pytest.mark.parametrize("harm", [empty_notes, change_notes])
def test_damaged_notes_of_an_older_checkpoint_stop_nothing(engine, tmp_path, harm):
    given = {"keep": 2, "best": "validation/error", "mode": "max", "every": 2}
    folder = mlox.Checkpoint(tmp_path, **given)
    run(engine, 8, checkpoint=folder)
    harm(locate(tmp_path, 6))
    with pytest.warns(UserWarning, match=r"cycle_6' is broken .* It is left out"):
        mlox.restore(tmp_path, engine.init(), cycle="best")
    with pytest.warns(UserWarning, match=r"cycle_6' is broken .* It is set aside"):
        found = run(engine, 12, checkpoint=folder, resume=True)
    assert bits(found) == bits(run(engine, 12))
    assert (tmp_path / "checkpoints" / "broken-6-0").is_dir()
    assert find_cycles(tmp_path)[-2:] == [10, 12]


def test_notes_that_are_damaged_while_a_run_goes_on_stop_nothing(engine, tmp_path):
    given = {"keep": 2, "best": "validation/error", "every": 2}
    folder = mlox.Checkpoint(tmp_path, **given)
    run(engine, 4, checkpoint=folder)

    def damaging(state):
        if int(state["outer"].step) == 7:
            empty_notes(locate(tmp_path, 4))
        return score(state)

    run(engine, 12, checkpoint=folder, resume=True, validation=damaging)
    assert find_cycles(tmp_path)[-2:] == [10, 12]


def test_resume_deletes_what_a_killed_run_was_writing_or_deleting(engine, tmp_path):
    folder = mlox.Checkpoint(tmp_path, every=2, keep=2)
    run(engine, 8, checkpoint=folder)
    for name in ("4", "10.orbax-checkpoint-tmp", "2.orbax-checkpoint-tmp-0"):
        shutil.copytree(locate(tmp_path, 6), locate(tmp_path, name))
    locate(tmp_path, "12.orbax-checkpoint-tmp").mkdir()
    item = locate(tmp_path, "10.orbax-checkpoint-tmp") / "state"
    item = item.rename(item.with_name("state.orbax-checkpoint-tmp"))
    (item / "array_metadatas").mkdir()  # of arrays that are split over processes
    for name in ("manifest.ocdbt.__lock", "_sharding", "array_metadatas/process_0"):
        (item / name).write_text("")
    run(engine, 8, checkpoint=folder, resume=True)
    names = sorted(x.name for x in (tmp_path / "checkpoints").iterdir())
    assert names == ["cycle_6", "cycle_8"]


def test_run_saves_in_one_folder_if_the_directory_of_the_process_changes(
    engine, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def moving(state):
        os.chdir(tmp_path / "elsewhere")
        return score(state)

    folder = mlox.Checkpoint("saved", every=2)
    run(engine, 4, checkpoint=folder, validation=moving)
    assert find_cycles(tmp_path / "saved") == [2, 4]
    assert not list((tmp_path / "elsewhere").iterdir())
    assert folder == mlox.Checkpoint("saved", every=2)


#
# Reading while a run deletes
#


@pytest.mark.parametrize(
    ("cycle", "after"), [("newest", "notes"), ("newest", "listing"), ("best", "notes")]
)
def test_restore_looks_again_if_a_run_deletes_what_it_reads(
    engine, tmp_path, monkeypatch, cycle, after
):
    """The run goes from the cycles 2 and 4 to 6 and 8, in the middle of the read."""
    given = {"every": 2, "keep": 2, "best": "validation/error", "mode": "max"}
    run(engine, 8, checkpoint=mlox.Checkpoint(tmp_path, **{**given, "keep": 4}))
    (tmp_path / "later").mkdir()
    for later in (6, 8):
        locate(tmp_path, later).rename(tmp_path / "later" / str(later))
    read_notes = CheckpointFolder.read_notes

    def go_on():
        for old in set(find_cycles(tmp_path)) & {2, 4}:
            CheckpointFolder(tmp_path).remove(old)
        for later in (6, 8):
            if (tmp_path / "later" / str(later)).exists():
                (tmp_path / "later" / str(later)).rename(locate(tmp_path, later))

    def read_while_a_run_goes_on(folder, which):
        if after == "listing":
            go_on()
        notes = read_notes(folder, which)
        go_on()
        return notes

    monkeypatch.setattr(CheckpointFolder, "read_notes", read_while_a_run_goes_on)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = mlox.restore(tmp_path, engine.init(), cycle=cycle)
    assert int(state["outer"].step) in (6, 8)
    assert find_cycles(tmp_path) == [6, 8]


def test_restore_raises_with_those_left_if_a_run_deletes_the_one_it_reads(
    engine, tmp_path, monkeypatch
):
    run(engine, 4, checkpoint=mlox.Checkpoint(tmp_path, every=2))
    read_notes = CheckpointFolder.read_notes

    def read_and_remove(folder, which):
        notes = read_notes(folder, which)
        folder.remove(which)
        return notes

    monkeypatch.setattr(CheckpointFolder, "read_notes", read_and_remove)
    with pytest.raises(FileNotFoundError, match=r"No checkpoint 2 .* there are \[4\]"):
        mlox.restore(tmp_path, engine.init(), cycle=2)


#
# Reading changes nothing
#


def content(path):
    return {x: x.read_bytes() for x in path.rglob("*") if x.is_file()}


def test_restore_changes_nothing_in_the_folder(engine, tmp_path):
    folder = mlox.Checkpoint(tmp_path, every=2, keep=2, best="validation/error")
    run(engine, 6, checkpoint=folder)
    shutil.copytree(locate(tmp_path, 6), locate(tmp_path, "8.orbax-checkpoint-tmp"))
    empty_notes(locate(tmp_path, 6))
    before = content(tmp_path)
    with pytest.warns(UserWarning, match="is broken"):
        mlox.restore(tmp_path, engine.init())
    with pytest.warns(UserWarning, match="is broken"):
        mlox.restore(tmp_path, engine.init(), cycle="best")
    mlox.restore(tmp_path, engine.init(), cycle=4)
    with pytest.raises(FileExistsError, match="holds checkpoints"):
        run(engine, 6, checkpoint=folder)
    assert content(tmp_path) == before
    with pytest.warns(UserWarning, match="is broken"):
        run(engine, 8, checkpoint=folder, resume=True)
    assert not list(tmp_path.glob("**/*tmp*"))


#
# A run touches nothing that it has not made
#


def save_with_orbax(path, tree):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def test_run_touches_nothing_that_it_has_not_made(engine, tmp_path):
    """Neither saves, nor deletions, nor resumption, nor the care for damaged files."""
    nested = mlox.Checkpoint(tmp_path / "0", every=2)
    run(engine, 4, checkpoint=nested)
    ours = tmp_path / "checkpoints"
    for name in ("007", "99", "1", "cycle_7", "broken-2-0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text(name)
    save_with_orbax(ours / "cycle_1", {"params": jnp.ones(3)})
    save_with_orbax(ours / "cycle_99", {"params": jnp.ones(3)})
    save_with_orbax(ours / "cycle_007", {"params": jnp.ones(3)})
    save_with_orbax(ours / "5", {"params": jnp.ones(3)})
    shutil.copytree(ours / "cycle_1", ours / "cycle_5.orbax-checkpoint-tmp" / "params")
    for name in ("cycle_9.orbax-checkpoint-tmp", "cycle_11.orbax-checkpoint-tmp/state"):
        (ours / name).mkdir(parents=True)
        (ours / name / "thesis.txt").write_text(name)
    (ours / "cycle_13.orbax-checkpoint-tmp").symlink_to(ours / "5")
    (ours / "007").mkdir()
    (ours / "cycle_3").write_text("a file")
    (ours / "cycle_3.txt").write_text("a file")
    (ours / "deep").mkdir()
    run(engine, 4, checkpoint=mlox.Checkpoint(ours / "deep" / "99", every=2))
    before = content(tmp_path)

    folder = mlox.Checkpoint(tmp_path, every=2, keep=1)
    with pytest.warns(UserWarning, match=r"'007', '5', 'cycle_007'.*left alone"):
        run(engine, 6, checkpoint=folder)
    with pytest.warns(UserWarning, match=r"'cycle_9\.orbax.*left alone"):
        run(engine, 10, checkpoint=folder, resume=True)
    flip(locate(tmp_path, 10))
    empty_notes(locate(tmp_path, 10))
    with pytest.raises(ValueError, match="No checkpoint is intact"):
        run(engine, 12, checkpoint=folder, resume=True)
    shutil.rmtree(locate(tmp_path, 10))
    with pytest.warns(UserWarning, match="left alone"):
        run(engine, 8, checkpoint=folder, resume=True)
    after = content(tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert find_cycles(tmp_path) == [8]
    assert find_cycles(tmp_path / "0") == [2, 4]


def test_save_leaves_out_a_cycle_whose_place_is_taken(engine, tmp_path):
    save_with_orbax(locate(tmp_path, 4), {"params": jnp.ones(3)})
    locate(tmp_path, "6.orbax-checkpoint-tmp").joinpath("theirs").mkdir(parents=True)
    before = content(tmp_path)
    with pytest.warns(UserWarning, match="cycle") as warned:
        found = run(engine, 8, checkpoint=mlox.Checkpoint(tmp_path, every=2))
    texts = [str(warning.message) for warning in warned]
    assert len(texts) == 3
    assert "cycle_4', 'cycle_6.orbax-checkpoint-tmp'" in texts[0]
    assert "Cycle 4 is not saved: " in texts[1]
    assert "Cycle 6 is not saved: " in texts[2]
    after = content(tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert find_cycles(tmp_path) == [2, 8]
    assert bits(found) == bits(run(engine, 8))


def test_checkpoints_of_the_old_format_raise_and_stay(engine, tmp_path):
    (tmp_path / "6" / "arrays").mkdir(parents=True)
    (tmp_path / "6" / "arrays" / "bytes").write_bytes(b"numbers")
    before = content(tmp_path)
    message = r"/6' is a checkpoint in a format .* choose another directory"
    for resume in (False, True):
        with pytest.raises(ValueError, match=message):
            run(engine, 4, checkpoint=mlox.Checkpoint(tmp_path), resume=resume)
    with pytest.raises(ValueError, match=message):
        mlox.restore(tmp_path, engine.init())
    assert content(tmp_path) == before


#
# The format: Orbax's own
#

READER = """
    import pathlib, sys
    import jax, numpy as np, orbax.checkpoint as ocp

    jax.config.update("jax_enable_x64", True)
    folder = pathlib.Path(sys.argv[1]) / "checkpoints"
    expected = dict(np.load(sys.argv[2]))

    def check(state):
        leaves = jax.tree_util.tree_leaves_with_path(state)
        found = {jax.tree_util.keystr(path): x for path, x in leaves}
        assert sorted(found) == sorted(expected), (sorted(found), sorted(expected))
        for name, x in found.items():
            assert x.dtype == expected[name].dtype, name
            np.testing.assert_array_equal(x, expected[name], err_msg=name)

    options = ocp.CheckpointManagerOptions(step_prefix="cycle", read_only=True)
    with ocp.CheckpointManager(folder, options=options) as manager:
        assert manager.all_steps() == [2, 4]
        read = manager.restore(manager.latest_step())
    check(read["state"])
    assert read["mlox"]["notes"]["cycle"] == 4
    assert "state.inner.params.w" in read["mlox"]["notes"]["leaves"]
    with ocp.StandardCheckpointer() as checkpointer:
        check(checkpointer.restore(folder / "cycle_4" / "state"))
    key = jax.random.wrap_key_data(read["state"]["inner"]["rng"])
    assert key == jax.random.key(3)
    assert not [name for name in sys.modules if name.startswith("mlox")]
    print("read")
"""


def test_plain_orbax_reads_the_parameters_by_name(engine, tmp_path):
    state, _ = run(engine, 4, checkpoint=mlox.Checkpoint(tmp_path, every=2))
    expected = {
        "['inner']['model_state']": state["inner"].model_state,
        "['inner']['opt_state']['1']['0']['count']": state["inner"].step,
        "['inner']['opt_state']['1']['0']['mu']['w']": (
            state["inner"].opt_state[1][0].mu["w"]
        ),
        "['inner']['opt_state']['1']['0']['nu']['w']": (
            state["inner"].opt_state[1][0].nu["w"]
        ),
        "['inner']['params']['w']": state["inner"].params["w"],
        "['inner']['rng']": jax.random.key_data(state["inner"].rng),
        "['inner']['step']": state["inner"].step,
        "['outer']['opt_state']['0']['count']": state["outer"].step,
        "['outer']['opt_state']['0']['mu']": state["outer"].opt_state[0].mu,
        "['outer']['opt_state']['0']['nu']": state["outer"].opt_state[0].nu,
        "['outer']['params']": state["outer"].params,
        "['outer']['step']": state["outer"].step,
    }
    np.savez(tmp_path / "expected.npz", **expected)
    command = [sys.executable, "-c", textwrap.dedent(READER)]
    done = subprocess.run(
        [*command, str(tmp_path), str(tmp_path / "expected.npz")],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
    )
    assert done.stdout == "read\n", done.stderr[-2000:]


def save_tree(path, tree, **trees):
    """Save a pytree as the state after one cycle."""
    writer = open_writer(mlox.Checkpoint(path), {})
    writer.save(1, {"state": tree, **trees}, {}, {})
    writer.close()


def test_restore_returns_the_bits_of_all_kinds_of_arrays(tmp_path):
    tree = {
        "flags": jnp.array([True, False, True]),
        "half": jnp.arange(5, dtype=jnp.bfloat16),
        "float8": jnp.arange(5, dtype=jnp.float8_e4m3fn),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 3),
        "complex": jnp.array([1 + 2j]),
        "none": jnp.zeros((0, 3)),
        "nan": np.array([np.nan, -0.0, np.inf]),
        "numpy": np.arange(6.0).reshape(2, 3)[:, ::2],
        "big": np.arange(3, dtype=">f4").astype("f4"),
        "int8": jnp.arange(-3, 2, dtype=jnp.int8),
        "tuple": (jnp.ones(2), [jnp.zeros(2)]),
    }
    save_tree(tmp_path, tree)
    template = jax.tree.map(lambda x: x, tree)
    found = mlox.restore(tmp_path, template)
    assert bits(found) == bits(tree)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, tree)


def test_restore_tells_apart_keys_that_orbax_mixes_up(tmp_path):
    names = ["", ".", "..", "/", "a", "a/", "a.b", "a/b", "[0]", "%", "a b", "é", "~"]
    tree = {name: jnp.full(2, float(i)) for i, name in enumerate(names)}
    tree = {**tree, "c": {"d": jnp.zeros(())}, "c.d": jnp.ones(())}
    save_tree(tmp_path, tree)
    chex.assert_trees_all_equal(mlox.restore(tmp_path, tree), tree)


def test_sum32_is_one_number_for_the_host_and_devices_and_notes_any_flip():
    def total(array):
        return leaves.sum32({"x": array})["x"]

    draw = np.random.default_rng(0)
    for dtype in ("bool", "int8", "float16", "bfloat16", "float32", "int64", "c16"):
        array = np.asarray(draw.normal(size=(7, 5)) * 100).astype(jnp.dtype(dtype))
        assert total(array) == total(jnp.asarray(array)) == total(array.copy())
        for _ in range(20 if dtype != "bool" else 0):
            flipped = array.copy()
            flat = flipped.reshape(-1).view(np.uint8)
            flat[draw.integers(flat.size)] ^= 1 << draw.integers(8)
            assert total(flipped) != total(array)


def test_states_may_be_donated_while_they_are_written(tmp_path):
    """What is written is what the state was, whatever its memory is used for then."""
    step = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)
    state = {"a": jnp.zeros((500, 500)), "b": {"c": jnp.zeros(1000)}}
    writer = open_writer(mlox.Checkpoint(tmp_path, keep=6), {})
    for cycle in range(6):
        writer.save(cycle, {"state": state}, {}, {})
        for _ in range(5):
            state = step(state)
    writer.close()
    for cycle in range(6):
        found = mlox.restore(tmp_path, state, cycle=cycle)
        chex.assert_trees_all_equal(
            found, jax.tree.map(lambda x, c=cycle: jnp.full_like(x, 5.0 * c), state)
        )


@pytest.mark.slow
def test_several_runs_save_at_once_in_threads(engine, tmp_path):
    expected, _ = run(engine, 6)

    def save(number):
        folder = mlox.Checkpoint(tmp_path / str(number), every=1, keep=2)
        return run(engine, 6, checkpoint=folder)[0]

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        states = list(pool.map(save, range(12)))
    for number, state in enumerate(states):
        assert bits(state) == bits(expected)
        assert find_cycles(tmp_path / str(number)) == [5, 6]
        assert bits(mlox.restore(tmp_path / str(number), state)) == bits(expected)


@pytest.mark.slow
def test_flipped_bits_never_give_other_numbers(engine, tmp_path):
    """The one before is taken, or nothing is different."""
    run(engine, 4, checkpoint=mlox.Checkpoint(tmp_path / "whole", every=2))
    template = engine.init()
    expected = {
        cycle: bits(mlox.restore(tmp_path / "whole", template, cycle=cycle))
        for cycle in (2, 4)
    }
    files = sorted(x for x in locate(tmp_path / "whole", 4).rglob("*") if x.is_file())
    draw, taken = np.random.default_rng(0), []
    for file in files:
        data = bytearray(file.read_bytes())
        data[draw.integers(len(data))] ^= 1 << draw.integers(8)
        shutil.copytree(tmp_path / "whole", tmp_path / "flipped", dirs_exist_ok=True)
        (tmp_path / "flipped" / file.relative_to(tmp_path / "whole")).write_bytes(data)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found = mlox.restore(tmp_path / "flipped", template)
        taken.append(2 if warned else 4)
        assert bits(found) == expected[taken[-1]]
    # The notes have a checksum; some files have nothing that is read.
    by_name = {file.name: cycle for file, cycle in zip(files, taken, strict=True)}
    assert by_name["metadata"] == 2
    assert 4 in taken


def test_flipped_bits_of_large_arrays_are_found_by_their_checksums(tmp_path):
    """Numbers that do not compress: only the CRC-32 of the leaf shows most flips."""
    problem = mlox.Problem.create(
        name="x",
        params=jax.random.normal(jax.random.key(0), 4000, jnp.float64),
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: jnp.sum(params**2),
    )
    engine = mlox.Engine([problem])
    checkpoint = mlox.Checkpoint(tmp_path, every=1)
    engine.run(engine.init(), train_iters=2, loggers=(), checkpoint=checkpoint)
    before = bits(mlox.restore(tmp_path, engine.init(), cycle=1))
    file = max(find_data(locate(tmp_path, 2)), key=lambda file: file.stat().st_size)
    whole = file.read_bytes()
    assert len(whole) > 0.9 * problem.params.nbytes
    for part in range(1, 8):
        data = bytearray(whole)
        data[len(data) * part // 8] ^= 1 << part
        file.write_bytes(data)
        with pytest.warns(UserWarning, match="cycle_2' is broken .*cycle 1 is taken"):
            found = mlox.restore(tmp_path, engine.init())
        assert bits(found) == before


#
# Parts
#


@pytest.fixture(scope="module")
def saved(engine, tmp_path_factory):
    """A folder with a checkpoint of the engine, and its state."""
    folder = tmp_path_factory.mktemp("saved")
    return folder, run(engine, 4, checkpoint=mlox.Checkpoint(folder))[0]


@pytest.fixture(scope="module")
def other():
    """An engine of another graph: another optimizer, and other names."""
    inner = make_engine(outer_tx=optax.sgd(0.1)).problems[1]
    student = mlox.Problem.create(
        name="student",
        params={"w": jnp.zeros(2), "none": jnp.ones((0, 2))},
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: jnp.sum(params["w"] ** 2),
    )
    return mlox.Engine([inner, student], l2u={"inner": ["student"]})


def test_restore_returns_a_problem_in_another_graph(saved, other):
    folder, state = saved
    template = other.init()
    found = mlox.restore(folder, template, partial=["inner"])
    assert bits(found["inner"]) == bits(state["inner"])
    assert bits(found["student"]) == bits(template["student"])
    assert int(template["inner"].step) == 0


@pytest.mark.parametrize(
    "parts",
    [["inner.params"], ("inner.params.w", "inner.params.none"), {"inner.params"}],
    ids=["list", "leaves", "set"],
)
def test_restore_returns_parameters_alone(saved, other, parts):
    folder, state = saved
    template = other.init()
    found = mlox.restore(folder, template, partial=parts)
    assert bits(found["inner"].params) == bits(state["inner"].params)
    assert bits(found["inner"].opt_state) == bits(template["inner"].opt_state)
    assert int(found["inner"].step) == 0


def test_restore_returns_parts_under_other_names(saved, other):
    folder, state = saved
    parts = {"student.params": "inner.params", "inner.params": "inner.params"}
    found = mlox.restore(folder, other.init(), partial=parts)
    assert bits(found["student"].params) == bits(state["inner"].params)
    assert bits(found["inner"].params) == bits(state["inner"].params)
    assert int(found["student"].step) == 0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["classifier"], r"the state holds no 'classifier'; it holds \['inner', 'stud"),
        (["student"], r"checkpoint '.*_4' holds no 'student'; it holds \['inner', 'ou"),
        (
            ["inner.parms"],
            r"the state holds no 'inner.parms'.*'inner.params', 'inner.r",
        ),
        ({"student.params": "inner.weights"}, r"cycle_4' holds no 'inner.weights'"),
        (
            {"student": "inner"},
            r"student.model_state: float64\[\] there, nothing here",
        ),
        (
            {"student.params.w": "outer.params"},
            r"student.params.w: float64\[\] there, float64\[2\] here",
        ),
    ],
)
def test_restore_raises_if_parts_do_not_fit(saved, other, parts, message):
    with pytest.raises(ValueError, match=message):
        mlox.restore(saved[0], other.init(), partial=parts)


@pytest.mark.parametrize("parts", ["inner", [], 3, [3], {"inner": 3}, True])
def test_restore_raises_if_partial_is_no_names(saved, engine, parts):
    with pytest.raises(TypeError, match=r"restore: partial is .*; expected names su"):
        mlox.restore(saved[0], engine.init(), partial=parts)


#
# Other engines
#


@pytest.mark.parametrize(
    ("other", "differences"),
    [
        (
            make_engine(width=3),
            [r"inner\.params\.w: float64\[2\] there, float64\[3\] here"],
        ),
        (make_engine(steps=3), ['unroll_steps: .*"inner": 2.* there, .*"inner": 3']),
        (
            make_engine(outer_tx=optax.sgd(0.1)),
            [r"outer\.opt_state\.0\.mu: float64\[\] there, nothing here"],
        ),
        (
            mlox.Engine([make_engine().problems[1].replace(name="alone")]),
            ["problems: .*there", "u2l: .* there, .* here", r"and 1 more\n"],
        ),
    ],
    ids=["shape", "schedule", "optimizer", "graph"],
)
def test_resume_raises_with_the_differences_of_another_engine(
    engine, tmp_path, other, differences
):
    folder = mlox.Checkpoint(tmp_path)
    run(engine, 2, checkpoint=folder)
    with pytest.raises(ValueError, match="is of another engine or state") as caught:
        other.run(
            other.init(), train_iters=2, checkpoint=folder, resume=True, loggers=()
        )
    for difference in differences:
        assert re.search(difference, str(caught.value))


def test_resume_does_not_ask_for_the_order_of_problems(engine, tmp_path):
    folder = mlox.Checkpoint(tmp_path)
    run(engine, 4, checkpoint=folder)
    edges = {"u2l": {"outer": ["inner"]}, "l2u": {"inner": ["outer"]}}
    turned = mlox.Engine(engine.problems[::-1], **edges)
    found = run(turned, 8, checkpoint=folder, resume=True)
    assert bits(found) == bits(run(engine, 8))


def test_long_differences_are_cut(engine, tmp_path):
    folder = mlox.Checkpoint(tmp_path)
    many = mlox.Problem.create(
        name="x",
        params=[jnp.zeros(())] * 40,
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: sum(params),
    )
    run(engine, 2, checkpoint=folder)
    with pytest.raises(ValueError, match=r"\n  and \d+ more\nUse the engine"):
        mlox.restore(tmp_path, mlox.Engine([many]).init())


#
# Processes: signals, a full disk
#

SCRIPT = """
    import pathlib, resource, signal, sys
    import jax, jax.numpy as jnp, numpy as np, optax
    import mlox

    jax.config.update("jax_enable_x64", True)
    folder, cycles, resume = sys.argv[1], int(sys.argv[2]), "resume" in sys.argv
    x = mlox.Problem.create(
        name="x", tx=optax.adam(0.01), rng=0,
        params=jax.random.normal(jax.random.key(0), 4000),
        loss_fn=lambda params, batch, ctx:
            jnp.sum((params - batch - jax.random.normal(ctx.rng)) ** 2))
    engine = mlox.Engine([x])

    class Report:
        def log(self, step, metrics):
            print(step, flush=True)

        def close(self):
            print("closed", flush=True)

    def validation(state):
        if "full" in sys.argv and int(state["x"].step) == 12:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return {"mean": state["x"].params.mean()}

    try:
        state, _ = engine.run(
            engine.init(), {"x": mlox.shuffled(np.arange(100.0), 1)}, cycles,
            log_every=1, loggers=[Report()], validation=validation, resume=resume,
            checkpoint=mlox.Checkpoint(folder, every=10, async_="full" not in sys.argv))
        print("end", np.asarray(state["x"].params).tobytes().hex()[:4000])
    except (mlox.RunError, mlox.RunInterrupted) as stopped:
        print("stopped", stopped.cycle, stopped)
"""


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **UNCACHED, "JAX_PLATFORMS": "cpu"},
    )


def output(folder, *arguments):
    process = start(folder, *arguments)
    text, _ = process.communicate(timeout=300)
    return text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_the_dispatch_end_and_saves(tmp_path, number):
    process = start(tmp_path, "1000000")
    for line in process.stdout:
        if line.strip() == "13":
            process.send_signal(number)
            break
    text, _ = process.communicate(timeout=300)
    stopped = next(x for x in text.splitlines() if x.startswith("stopped"))
    cycle = int(stopped.split()[1])
    assert find_cycles(tmp_path)[-1] == cycle
    assert f"at a signal after cycle {cycle} of 1000000" in stopped
    assert f"Stopped by {number.name}. The run is saved in" in stopped
    assert "closed" in text
    until = str(cycle + 7)
    resumed = output(tmp_path, until, "resume").splitlines()
    assert resumed[0] == str(cycle + 1)
    assert resumed[-1] == output(tmp_path / "whole", until).splitlines()[-1]


@pytest.mark.slow
def test_full_disk_raises_and_the_checkpoint_before_stays_intact(tmp_path):
    text = output(tmp_path, "30", "full")
    stopped = next(x for x in text.splitlines() if x.startswith("stopped"))
    assert "failed at" in stopped
    assert "File too large" in stopped or "limit" in stopped
    assert find_cycles(tmp_path) == [10]
    resumed = output(tmp_path, "30", "resume").splitlines()
    assert resumed[0] == "11"
    assert resumed[-1] == output(tmp_path / "whole", "30").splitlines()[-1]


#
# Arguments
#


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"directory": 3}, TypeError, "directory is 3; expected a path"),
        ({"directory": ""}, TypeError, "directory is ''; expected a path"),
        ({"directory": "gs://runs/1"}, ValueError, "Mount the bucket"),
        ({"every": 0}, ValueError, "every is 0; expected a positive int"),
        ({"keep": 1.5}, ValueError, "keep is 1.5; expected a positive int"),
        ({"best": "error"}, ValueError, "best is 'error'; expected the name of a sca"),
        ({"mode": "most"}, ValueError, "mode is 'most'; expected 'min'"),
        ({"async_": None}, TypeError, "async_ is None; expected True or False"),
    ],
)
def test_checkpoint_raises_if_a_field_is_wrong(values, kind, message):
    with pytest.raises(kind, match=message):
        mlox.Checkpoint(**{"directory": "here", **values})


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"checkpoint": "here"}, TypeError, "`checkpoint` is 'here'; expected a mlox"),
        (
            {"resume": True},
            ValueError,
            "`resume` is True, but there is no `check",
        ),
        ({"resume": 1}, TypeError, "`resume` is 1; expected True or False"),
        (
            {"checkpoint": mlox.Checkpoint("x", best="validation/error")},
            ValueError,
            "keeps the best 'validation/error', but there is no `validation`",
        ),
        (
            {"checkpoint": mlox.Checkpoint("x", best="inner/loss", every=3)},
            ValueError,
            "recorded every 2 cycles, but saves every 3.*multiple of `log_every`",
        ),
    ],
)
def test_run_raises_if_options_of_checkpoints_are_wrong(
    engine, options, kind, message, tmp_path
):
    with pytest.raises(kind, match=message):
        engine.run(engine.init(), series(), 4, loggers=(), log_every=2, **options)
    assert not pathlib.Path("x").exists()


class TestRefusals:
    """What cannot be saved to, restored from, or resumed."""

    def problem(self, **metrics):
        return mlox.Engine(
            [
                mlox.Problem.create(
                    name="x",
                    params=jnp.ones(()),
                    tx=optax.sgd(0.25),
                    loss_fn=lambda p, batch, ctx: {"loss": p**2, **metrics},
                )
            ]
        )

    def run(self, engine, folder, train_iters=2, **options):
        checkpoint = mlox.Checkpoint(folder, every=1)
        given = {"checkpoint": checkpoint, "loggers": (), **options}
        return engine.run(engine.init(), None, train_iters, **given)

    @pytest.mark.parametrize("path", ["file", "file/first", "."])
    def test_a_folder_that_is_a_file(self, tmp_path, path):
        (tmp_path / "file").write_text("")
        (tmp_path / "checkpoints").write_text("")
        with pytest.raises(
            NotADirectoryError, match=r"^`checkpoint`: .*/(file|checkpoints)' is a file"
        ):
            self.run(self.problem(), tmp_path / path)

    @pytest.mark.parametrize("best", ["x/error", "y/loss", "validation/error"])
    def test_a_best_that_nothing_records(self, tmp_path, best):
        message = f"keeps the best '{best}', but no scalar is recorded under this name"
        with pytest.raises(mlox.RunError, match=message):
            self.run(
                self.problem(),
                tmp_path,
                checkpoint=mlox.Checkpoint(tmp_path, every=1, best=best),
                validation=lambda state: {"accuracy": 0.5},
            )

    def test_other_metrics(self, tmp_path):
        self.run(self.problem(), tmp_path)
        message = "the run that is resumed recorded other metrics: .* on one side only"
        with pytest.raises(mlox.RunError, match=message):
            self.run(self.problem(a=0.0), tmp_path, 4, resume=True)

    @pytest.mark.parametrize("cycles", [1, 2])
    def test_fewer_cycles_than_are_behind(self, tmp_path, cycles):
        engine = self.problem()
        self.run(engine, tmp_path, 3)
        message = f"`train_iters` is {cycles}, but the run that is resumed has reached "
        with pytest.raises(ValueError, match=message):
            self.run(engine, tmp_path, cycles, resume=True, cycles_per_dispatch=3)

    @pytest.mark.parametrize("cycle", ["last", 1.0, True])
    def test_cycles_that_are_none(self, tmp_path, cycle):
        with pytest.raises(
            ValueError, match=r"restore: cycle is .*; expected 'newest'"
        ):
            mlox.restore(tmp_path, self.problem().init(), cycle=cycle)

    def test_states_and_folders_that_are_none(self, tmp_path):
        with pytest.raises(
            TypeError, match=r"restore: state holds a leaf that is 'text'; expected arr"
        ):
            mlox.restore(tmp_path, {"x": "text"})
        with pytest.raises(TypeError, match="directory is 3; expected a path"):
            mlox.restore(3, self.problem().init())
