"""Jobs of several real processes, which talk over the loopback address."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import mlox
from mlox._checkpoint.folder import CheckpointFolder, with_checksum
from mlox._sharding import multihost

from .conftest import UNCACHED
from .sharded import METHODS, check_close, data, engine_of, trees

ROOT = pathlib.Path(__file__).parents[1]
TIMEOUT = 240
"""Seconds after which a job has hung; it takes a few."""


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


def check_ended_well(job):
    for code, _, errors in job:
        assert code == 0, errors


@pytest.fixture(scope="module")
def expected():
    """The numbers of one process with all of the data."""
    engine = engine_of(METHODS["cg"])
    batch = data()["penalty"][0]
    state, history = engine.run(
        engine.init(),
        data(),
        train_iters=5,
        log_every=2,
        validation=lambda state: {
            "loss": engine.evaluate(state, "penalty", batch)["loss"]
        },
        loggers=(),
    )
    return jax.device_get(trees(state)), history


def check_same_numbers(folder, count, expected):
    state, history = expected
    structure = jax.tree.structure(state)
    for name in ("replicated", "fsdp"):
        for process in range(count):
            with np.load(folder / f"{name}-{process}.npz") as found:
                leaves = [found[f"leaf{i}"] for i in range(structure.num_leaves)]
                check_close(jax.tree.unflatten(structure, leaves), state, 1e-10)
                check_close({n: found[n] for n in history}, history, 1e-10)
                mean = (count - 1) / 2
                assert found["validation/process"].tolist() == [mean] * 3


def check_only_the_first_speaks(folder, job):
    (_, lines, bar), *others = job
    assert "fit/loss" in lines
    assert "5/5" in bar
    for _, lines, bar in others:
        assert "loss" not in lines
        assert "cycle" not in bar
    for name in ("replicated", "fsdp"):
        file = folder / name / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert [row["cycle"] for row in rows] == [2, 4, 5]
        assert len(list((folder / name).glob("events*"))) == 1


def read(folder, name, count):
    return [(folder / f"{name}-{i}.txt").read_text() for i in range(count)]


def test_two_processes(tmp_path, expected):
    """Many things in one job, since starting it takes longest."""
    scenarios = ("train", "stop_early", "failing_validation", "other_names", "alone")
    job = launch(2, tmp_path, *scenarios)
    check_ended_well(job)
    check_same_numbers(tmp_path, 2, expected)
    check_only_the_first_speaks(tmp_path, job)
    for process in range(2):
        with np.load(tmp_path / f"stop_early-{process}.npz") as found:
            assert found["cycle"].tolist() == [1, 2, 3, 4]
            assert found["best_cycle"] == 1
        with np.load(tmp_path / f"alone-{process}.npz") as found:
            assert found["cycle"].tolist() == list(range(1, 3 + process))
    here, there = read(tmp_path, "failing_validation", 2)
    assert here.startswith("RunError 2\n")
    assert "it failed on process 1, whose log says why" in here
    assert there.startswith("RunError 2\n")
    assert "no such file" in there
    for process, text in enumerate(read(tmp_path, "other_names", 2)):
        assert text.startswith("RunError 2\n")
        assert f"['validation/at{process}'] on process {process}, and other" in text


def test_four_processes(tmp_path, expected):
    job = launch(4, tmp_path, "train", "refused")
    check_ended_well(job)
    check_same_numbers(tmp_path, 4, expected)
    check_only_the_first_speaks(tmp_path, job)
    for process, text in enumerate(read(tmp_path, "refused", 4)):
        alike, mesh, placed, saved = text.splitlines()
        assert "'fit/step' differs between processes" in alike
        assert f"processes [0, 1, 2], and this is process {process} of 4" in mesh
        assert "`state` is on no mesh, but this job has 4 processes" in placed
        assert "`state` is on a mesh of one of 4. Place it on a mesh of" in saved


def test_a_signal_to_one_process_stops_all_at_the_same_cycle(tmp_path):
    check_ended_well(launch(2, tmp_path, "terminated"))
    texts = read(tmp_path, "terminated", 2)
    first = {text.splitlines()[0] for text in texts}
    assert len(first) == 1
    kind, cycle = first.pop().split()
    assert kind == "RunInterrupted"
    assert int(cycle) >= 4
    assert all("Stopped by SIGTERM." in text for text in texts)


def test_a_killed_process_is_an_error_on_the_others(tmp_path):
    (code, _, errors), (other, _, _) = launch(2, tmp_path, "killed")
    assert other == -9
    assert code != 0, errors  # JAX ends a process when another one has died
    text = (tmp_path / "killed-0.txt").read_text()
    assert text.startswith("RunError 2\n")
    assert "This is process 0 of 2. If another one has died, its log says" in text
    assert not (tmp_path / "killed-1.txt").exists()


def check_equal(first, second):
    with np.load(first) as one, np.load(second) as other:
        assert set(one) <= set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_job_whose_process_was_killed_goes_on_as_if_it_were_not(tmp_path):
    """On two processes; what they have saved can be read by any number."""
    whole = tmp_path / "whole"
    (tmp_path / "killed").mkdir()
    whole.mkdir()
    (code, _, said), (other, _, _) = launch(2, tmp_path / "killed", "killed_late")
    assert code != 0
    assert "RunError: The run failed at the step of cycle 5 of 6." in said
    assert other == -9
    check_ended_well(launch(2, whole, "checkpointed", "uneven"))
    job = launch(2, tmp_path / "killed", "restored", "checkpointed")
    check_ended_well(job)
    for process in range(2):
        name = f"checkpointed-{process}.npz"
        check_equal(tmp_path / "killed" / name, whole / name)
        check_equal(whole / f"parts-{process}.npz", whole / f"whole-{process}.npz")
    lines = (tmp_path / "killed" / "logs" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["cycle"] for line in lines] == [2, 4, 6]
    engine = engine_of(METHODS["cg"])
    state = jax.device_get(trees(mlox.restore(whole / "run", engine.init())))
    with np.load(whole / "checkpointed-0.npz") as found:
        for i, leaf in enumerate(jax.tree.leaves(state)):
            np.testing.assert_array_equal(found[f"leaf{i}"], leaf)
    check_ended_well(launch(4, whole, "restored"))
    for process in range(4):
        check_equal(whole / f"restored-{process}.npz", whole / "checkpointed-0.npz")
    check_damage_is_met_alike(whole / "run", tmp_path / "damaged")


def check_damage_is_met_alike(run, folder):
    """Damage what only one process reads: all go back to the same checkpoint."""
    shutil.copytree(run, folder / "run")
    checkpoints = CheckpointFolder(folder / "run")
    file = checkpoints.locate(6) / "mlox" / "metadata"
    notes = checkpoints.read_notes(6)
    spread = [name for name, leaf in notes["leaves"].items() if leaf[2] == "sum32"]
    notes["leaves"][spread[-1]][3] ^= 1
    file.write_text(json.dumps(with_checksum(notes)))
    for file in checkpoints.locate(4).glob("state/ocdbt.process_1/d/*"):
        file.write_bytes(file.read_bytes()[::-1])
    job = launch(2, folder, "restored")
    check_ended_well(job)
    for _, _, said in job:
        assert "cycle_6' is broken (ValueError: the numbers of state." in said
        assert "cycle_4' is broken" in said
    engine = engine_of(METHODS["cg"])
    state = trees(mlox.restore(run, engine.init(), cycle=2))
    for process in range(2):
        with np.load(folder / f"restored-{process}.npz") as found:
            for i, leaf in enumerate(jax.tree.leaves(state)):
                np.testing.assert_array_equal(found[f"leaf{i}"], leaf)


def test_positions_of_other_processes():
    each = {multihost.PER_PROCESS: [{"fit": 1}, {"fit": 2}]}
    with pytest.warns(UserWarning, match="is of 2 processes .* this job has 1: all go"):
        assert multihost.select_positions(each) == {"fit": 1}
    assert multihost.select_positions({"fit": 3}) == {"fit": 3}


def test_mlox_has_no_process_by_itself():
    """Nothing of a job is asked for where there is none."""
    engine = engine_of(METHODS["detached"])
    assert jax.process_count() == 1
    mesh = jax.make_mesh((1,), ("data",))
    state = mlox.shard(engine, engine.init(), mesh)
    _, history = engine.run(state, data(), train_iters=2, loggers=())
    assert history["cycle"].tolist() == [1, 2]
