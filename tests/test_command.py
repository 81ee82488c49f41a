"""The command line, as a real process."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import jax.numpy as jnp
import numpy as np
import pytest

import mlox
from mlox._command import checkpoints, info, laws, selftest
from mlox._command.main import main

from .small import BATCH, pair, run_engine

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run_engine(
        pair(),
        {"fit": [BATCH], "penalty": None},
        train_iters=4,
        checkpoint=mlox.Checkpoint(folder, every=2, keep=3),
    )
    (folder / "checkpoints" / "cycle_5.orbax-checkpoint-tmp").mkdir()
    return folder


def call(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert all(len(line) <= 100 for line in err.splitlines())
    return status, out, err


def files_of(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_checkpoints_lists_complete_and_torn_ones_and_writes_nothing(saved, capsys):
    before = files_of(saved)
    status, out, _ = call(capsys, "checkpoints", saved)
    assert status == 0
    states = re.findall(r"^  (\S+) .* (complete|torn: .*)$", out, re.MULTILINE)
    assert [(name, state[:4]) for name, state in states] == [
        ("cycle_2", "comp"),
        ("cycle_4", "comp"),
        ("cycle_5.orbax-checkpoint-tmp", "torn"),
    ]
    assert "fit, penalty" in out
    assert files_of(saved) == before


def test_checkpoints_describes_one(saved, capsys):
    status, out, _ = call(capsys, "checkpoints", saved / "checkpoints" / "cycle_4")
    assert status == 0
    assert "cycle 4" in out
    assert "all checksums agree" in out
    assert re.search(r"fit\.params +float32\[2\]", out)
    assert re.search(r"fit/loss +-?\d", out)


def test_checkpoints_compares_two(saved, capsys, tmp_path):
    folder = saved / "checkpoints"
    status, out, _ = call(capsys, "checkpoints", folder / "cycle_2", saved)
    assert status == 0
    assert re.search(r"fit\.step +2|fit\.step +4", out)
    assert "equal, bit for bit: 0 of 4" in out
    mlox.save(tmp_path, {"fit": {"params": jnp.zeros(3)}, "more": jnp.ones(1)}, cycle=7)
    _, out, _ = call(capsys, "checkpoints", saved, tmp_path)
    assert "only in the second: more" in out
    assert re.search(r"fit\.params: float32\[2\] and float\d\d\[3\]", out)


def test_checkpoints_says_what_is_wrong(saved, capsys, tmp_path):
    for path, said in (
        (tmp_path / "no", "is not a folder"),
        (tmp_path, "no checkpoint"),
    ):
        status, out, err = call(capsys, "checkpoints", path)
        assert (status, out) == (2, "")
        assert err.startswith("mlox checkpoints: ")
        assert said in " ".join(err.split())


def test_damaged_checkpoint_is_named(saved, capsys, tmp_path):
    mlox.save(tmp_path, {"x": np.arange(1000.0)}, cycle=1)
    path = tmp_path / "checkpoints" / "cycle_1"
    (path / "mlox" / "metadata").write_text("{}")
    assert "broken" in call(capsys, "checkpoints", tmp_path)[1]
    status, _, err = call(capsys, "checkpoints", path)
    assert status == 2
    assert "is broken" in " ".join(err.split())


def test_info_knows_the_lowest_versions_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pairs = dict(each.split(">=") for each in project["dependencies"])
    assert pairs == info.LOWEST
    assert project["requires-python"] == f">={info.LOWEST_PYTHON}"
    assert info.find_unsupported({"Python": "3.10.1", "jax": "0.10.0rc1"}) == [
        "Python is 3.10.1; mlox expects 3.11 or later: install a newer Python."
    ]


@pytest.mark.slow
def test_commands_run_as_a_process(saved):
    def run(*arguments):
        command = [sys.executable, "-W", "error", "-m", "mlox", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=two_devices)

    flag = "--xla_force_host_platform_device_count=2"
    two_devices = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}

    shown = run("info", "--json")
    assert json.loads(shown.stdout)["versions"]["mlox"] == mlox.__version__, (
        shown.stderr
    )
    plain = run("info")
    assert plain.returncode == 0
    assert "float64" in plain.stdout
    assert "no/run" in run("checkpoints", "no/run").stderr
    assert "examples:" in run("--help").stdout
    none = run()
    assert none.returncode == 2
    assert "Traceback" not in none.stderr
    tested = run("selftest")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "Unrolled: closed form" in tested.stdout
    assert "a step: 2 devices against one" in tested.stdout
    assert all(len(line) <= 100 for line in tested.stdout.splitlines())


def test_selftest_fails_when_a_law_does(monkeypatch, capsys):
    def raise_error():
        raise RuntimeError("no such device")

    measured = [
        laws.Law("good", "float32", 1.0, lambda: 0.5),
        laws.Law("bad", "float32", 1.0, lambda: 2.0),
        laws.Law("worse", "float32", 1.0, raise_error),
    ]
    monkeypatch.setattr(selftest, "list_laws", lambda: iter(measured))
    status, out, _ = call(capsys, "selftest")
    assert status == 1
    assert out.count("FAILED") == 2
    assert "worse: RuntimeError: no such device" in out
    assert "1 of 3 laws hold" in out


def test_info_tells_why_there_is_no_device():
    done = subprocess.run(
        [sys.executable, "-m", "mlox", "info"],
        env=os.environ | {"JAX_PLATFORMS": "nonsense"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"jaxlib +\d", done.stdout)
    assert "warning: JAX finds no device" in done.stdout


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (np.array([2**62]), np.array([2**62 + 1]), ["1", "2.17e-19"]),
        (np.array([0.0]), np.array([-0.0]), ["0", "0"]),
        (np.array([np.nan, 1.0]), np.array([0.0, 1.5]), ["0.5, 1 not finite", "0.5"]),
        (jnp.ones(2, jnp.bfloat16), jnp.zeros(2, jnp.bfloat16), ["1", "1"]),
    ],
    ids=["integers", "signs of zero", "nan", "bfloat16"],
)
def test_distance_of_leaves_is_exact(x, y, said):
    assert checkpoints._distance(np.asarray(x), np.asarray(y)) == said
