"""Jobs of several real processes, which talk over the loopback address.

Starting processes takes longest, so that a job runs many scenarios, and the last one
may kill it.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

import mlox
from mlox._checkpoint.folder import CheckpointFolder, with_checksum
from mlox._sharding import multihost

from .conftest import UNCACHED
from .sharded import METHODS, assert_close, make_data, make_engine, select_arrays

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.slow
TIMEOUT = 240
"""Seconds after which a job hangs; it takes a few."""


def launch(count, folder, *scenarios):
    """Run a job, and return its processes as (return code, stdout, stderr)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.one_of_many"),
                *map(str, (i, count, port, folder, *scenarios)),
            ],
            cwd=ROOT,
            env={**os.environ, **UNCACHED},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    try:
        ended = [process.communicate(timeout=TIMEOUT) for process in job]
    finally:
        for process in job:
            process.kill()
    return [(p.returncode, *texts) for p, texts in zip(job, ended, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    for name in ("2", "4", "2/whole", "2/killed"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def pair(folder):
    """Two processes, of which one is killed at the end."""
    scenarios = (
        *("train", "stop_early", "train_alone", "fail_in_validation"),
        *("return_other_names", "checkpoint", "resume_at_other_positions"),
        "kill_in_data",
    )
    return launch(2, folder / "2", *scenarios)


@pytest.fixture(scope="module")
def second_pair(folder, pair):
    """Two processes that continue what was killed, and end by a signal."""
    del pair
    damage(folder / "2" / "whole" / "run", folder / "2" / "damaged" / "run")
    scenarios = ("resume", "restore_damaged", "misplace", "terminate")
    return launch(2, folder / "2", *scenarios)


def damage(run, copy):
    """Damage what only one process reads of the newest two checkpoints."""
    shutil.copytree(run, copy)
    checkpoints = CheckpointFolder(copy)
    notes = checkpoints.read_notes(6)
    split = [name for name, leaf in notes["leaves"].items() if leaf[2] == "sum32"]
    notes["leaves"][split[-1]][3] ^= 1
    file = checkpoints.locate(6) / "mlox" / "metadata"
    file.write_text(json.dumps(with_checksum(notes)))
    for file in checkpoints.locate(4).glob("state/ocdbt.process_1/d/*"):
        file.write_bytes(file.read_bytes()[::-1])


@pytest.fixture(scope="module")
def four(folder, pair):
    """Four processes, which read what two have saved; one is killed at the end."""
    del pair
    (folder / "4" / "whole").symlink_to(folder / "2" / "whole")
    scenarios = ("train", "misplace", "restore", "kill_in_validation")
    return launch(4, folder / "4", *scenarios)


@pytest.fixture(params=["pair", "four"])
def job(request, folder):
    """A job that has trained: its folder, and its processes."""
    processes = request.getfixturevalue(request.param)
    return folder / str(len(processes)), processes


def read(folder, name, count):
    return [(folder / f"{name}-{i}.txt").read_text() for i in range(count)]


def load(path):
    with np.load(path) as found:
        return dict(found)


@pytest.fixture(scope="module")
def expected():
    """The state and the history of one process with all of the data."""
    engine = make_engine(METHODS["cg"])
    batch = make_data()["penalty"][0]
    state, history = engine.run(
        engine.init(),
        make_data(),
        train_iters=5,
        log_every=2,
        validation=lambda state: {
            "loss": engine.evaluate(state, "penalty", batch)["loss"]
        },
        loggers=(),
    )
    return jax.device_get(select_arrays(state)), dict(history)


@pytest.mark.parametrize("rules", ["replicated", "fsdp"])
def test_run_returns_the_numbers_of_one_process(job, rules, expected):
    folder, processes = job
    state, history = expected
    leaves, structure = jax.tree.flatten(state)
    for process in range(len(processes)):
        found = load(folder / f"{rules}-{process}.npz")
        mine = [found[f"leaf{i}"] for i in range(len(leaves))]
        assert_close(jax.tree.unflatten(structure, mine), state, 1e-10)
        assert_close({name: found[name] for name in history}, dict(history), 1e-10)
        mean = (len(processes) - 1) / 2
        assert found["validation/process"].tolist() == [mean] * 3


def test_run_logs_on_the_first_process_only(job):
    folder, [(_, lines, bar), *others] = job
    assert "fit/loss" in lines
    assert "5/5" in bar
    for _, lines, bar in others:
        assert "loss" not in lines
        assert "cycle" not in bar
    for rules in ("replicated", "fsdp"):
        assert read_cycles(folder / rules) == [2, 4, 5]
        assert len(list((folder / rules).glob("events*"))) == 1


def read_cycles(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["cycle"] for line in lines]


@pytest.mark.usefixtures("pair")
def test_run_stops_early_by_the_mean_over_processes(folder):
    for process in range(2):
        found = load(folder / "2" / f"stop_early-{process}.npz")
        assert found["cycle"].tolist() == [1, 2, 3, 4]
        assert found["best_cycle"] == 1


@pytest.mark.usefixtures("pair")
def test_run_trains_alone_on_a_mesh_of_one_process(folder):
    for process in range(2):
        found = load(folder / "2" / f"train_alone-{process}.npz")
        assert found["cycle"].tolist() == list(range(1, 3 + process))


@pytest.mark.usefixtures("pair")
def test_run_raises_on_all_processes_if_one_fails(folder):
    here, there = read(folder / "2", "fail_in_validation", 2)
    assert here.startswith("RunError 2\n")
    assert "it failed on process 1, whose log says why" in here
    assert there.startswith("RunError 2\n")
    assert "no such file" in there


@pytest.mark.usefixtures("pair")
def test_run_raises_if_the_names_of_scores_differ(folder):
    for process, text in enumerate(read(folder / "2", "return_other_names", 2)):
        assert text.startswith("RunError 2\n")
        assert f"['validation/at{process}'] on process {process}, and other" in text


MISPLACED = (
    "'fit/step' differs between processes",
    "`state` is on no mesh, but this job has {count} processes",
    "`state` is on a mesh of one of {count}. Place it on a mesh of",
)


@pytest.mark.usefixtures("second_pair")
def test_shard_and_run_raise_for_misplaced_states(folder):
    for text in read(folder / "2", "misplace", 2):
        for message in MISPLACED:
            assert message.format(count=2) in text


@pytest.mark.usefixtures("four")
def test_shard_raises_for_a_mesh_of_some_processes(folder):
    for process, text in enumerate(read(folder / "4", "misplace", 4)):
        for message in MISPLACED:
            assert message.format(count=4) in text
        assert f"processes [0, 1, 2], and this is process {process} of 4" in text


KILLS = [("pair", "kill_in_data", 4), ("four", "kill_in_validation", 2)]


@pytest.mark.parametrize(("job", "name", "cycle"), KILLS, indirect=["job"])
def test_run_raises_if_another_process_is_killed(job, name, cycle):
    folder, processes = job
    codes = [code for code, _, _ in processes]
    assert codes[1] == -9
    # JAX ends a process when another one has died.
    assert 0 not in codes, processes[codes.index(0)][2]
    text = (folder / f"{name}-0.txt").read_text()
    assert text.startswith(f"RunError {cycle}\n")
    count = len(processes)
    assert f"process 0 of {count}. If another one has died, its log says" in text
    assert not (folder / f"{name}-1.txt").exists()


def test_run_stops_at_one_cycle_if_one_process_gets_a_signal(folder, second_pair):
    for code, _, errors in second_pair:
        assert code == 0, errors
    texts = read(folder / "2", "terminate", 2)
    (first,) = {text.splitlines()[0] for text in texts}
    kind, cycle = first.split()
    assert kind == "RunInterrupted"
    assert int(cycle) >= 4
    assert all("Stopped by SIGTERM." in text for text in texts)


@pytest.mark.usefixtures("second_pair")
def test_resumed_run_returns_the_bits_of_one_that_was_not_killed(folder):
    for process in range(2):
        whole, killed = (
            load(folder / "2" / name / f"end-{process}.npz")
            for name in ("whole", "killed")
        )
        chex.assert_trees_all_equal(killed, whole)
    assert read_cycles(folder / "2" / "killed" / "logs") == [2, 4, 6]


@pytest.mark.usefixtures("pair")
def test_resumed_run_continues_at_the_positions_of_each_process(folder):
    for process in range(2):
        at_once, in_parts = (
            load(folder / "2" / f"{name}-{process}.npz")
            for name in ("at-once", "in-parts")
        )
        chex.assert_trees_all_equal(in_parts, at_once)


@pytest.mark.usefixtures("pair")
def test_restore_reads_a_checkpoint_of_two_processes_on_one(folder):
    assert_saved(read_on_one_process(folder), load(folder / "2/whole/end-0.npz"))


def read_on_one_process(folder, **options):
    """Read a checkpoint of two processes on this one."""
    like = make_engine(METHODS["cg"]).init()
    state = select_arrays(mlox.restore(folder / "2/whole/run", like, **options))
    leaves = jax.tree.leaves(jax.device_get(state))
    return {f"leaf{i}": leaf for i, leaf in enumerate(leaves)}


def assert_saved(found, saved):
    assert found
    chex.assert_trees_all_equal(found, {name: saved[name] for name in found})


@pytest.mark.usefixtures("four")
def test_restore_reads_a_checkpoint_of_two_processes_on_four(folder):
    saved = load(folder / "2/whole/end-0.npz")
    for process in range(4):
        found = load(folder / "4/whole" / f"restored-by-4-{process}.npz")
        assert_saved(found, saved)


def test_restore_meets_damage_alike_on_all_processes(folder, second_pair):
    expected = read_on_one_process(folder, cycle=2)
    for process, (_, _, warnings) in enumerate(second_pair):
        assert "cycle_6' is broken (ValueError: the numbers of state." in warnings
        assert "cycle_4' is broken" in warnings
        found = load(folder / "2/damaged" / f"restored-by-2-{process}.npz")
        assert_saved(found, expected)


def test_select_positions_warns_if_the_number_of_processes_changed():
    each = {multihost.PER_PROCESS: [{"fit": 1}, {"fit": 2}]}
    with pytest.warns(
        UserWarning, match="is of 2 processes .* this job has 1: all continue"
    ):
        assert multihost.select_positions(each) == {"fit": 1}
    assert multihost.select_positions({"fit": 3}) == {"fit": 3}


def test_annotate_device_error_adds_a_note_to_errors_of_collectives():
    early = jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed")
    late = ValueError("UNKNOWN: Gloo AllGather failed")
    for error in (early, late):
        (note,) = vars(multihost.annotate_device_error(error))["__notes__"]
        assert note.startswith("This is process 0 of 1. If another one has died")
    error = multihost.annotate_device_error(ValueError("unknown: x"))
    assert "__notes__" not in vars(error)


def test_run_needs_no_job_for_a_mesh_of_one_process():
    engine = make_engine(METHODS["detached"])
    assert jax.process_count() == 1
    mesh = jax.make_mesh((1,), ("data",))
    state = mlox.shard(engine, engine.init(), mesh)
    _, history = engine.run(state, make_data(), train_iters=2, loggers=())
    assert history["cycle"].tolist() == [1, 2]
