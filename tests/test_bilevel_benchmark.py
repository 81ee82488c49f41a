"""The public bilevel benchmark's jobs: its command, its measures, its own methods."""

import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks" / "bilevel"
pytestmark = pytest.mark.slow


@pytest.fixture
def programs(monkeypatch):
    """Import files of the benchmark, from the folder in which they find each other."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = {path.stem for path in FOLDER.glob("*.py")}
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


def test_the_command_writes_curves_that_fall_with_every_evaluation_counted(tmp_path):
    command = [sys.executable, FOLDER / "run.py", "--quick", "--results", tmp_path]
    subprocess.run(command, check=True, timeout=300)
    found = json.loads((tmp_path / "ridge.json").read_text())
    curves = {curve["method"]: curve for curve in found["curves"]}
    assert set(curves) == set(found["settings"]) == {"Implicit(CG)", "SOBA", "SABA"}
    prices = {"Implicit(CG)": 33, "SOBA": 6, "SABA": 6}
    for name, curve in curves.items():
        spent = np.array(curve["evaluations"])
        assert (spent % prices[name] == 0).all()
        assert (np.diff(spent) > 0).all()
        assert spent[0] == 0
        assert spent[-1] > found["sizes"]["budget"] - prices[name]
        assert (np.diff(curve["seconds"]) > 0).all()
        assert curve["norm"][-1] < 0.5 * curve["norm"][0]
        assert curve["value"][-1] < curve["value"][0]


@pytest.mark.parametrize("name", ["ridge", "logistic", "quadratic", "cleaning"])
def test_norms_are_those_of_central_differences(programs, name, monkeypatch):
    monkeypatch.delenv("MLOX_DATA", raising=False)
    jobs = programs("jobs")
    made = {"cleaning": lambda: jobs.cleaning(0.5, images=100)}
    job = made.get(name, lambda: jobs.JOBS[name]())()
    x = job.x + 0.3 * np.random.default_rng(0).normal(size=job.x.shape)
    # Data cleaning is measured in float32.
    step, accuracy = (0.5, 2e-2) if name == "cleaning" else (1e-4, 1e-5)
    moves = step * np.eye(x.size)
    moved = np.concatenate([x + moves, x - moves])
    guesses = np.stack([job.y] * len(moved))
    plus, minus = np.split(job.measure(moved, guesses).values, 2)
    norm = job.measure(x[None], job.y[None]).norms[0]
    expected = np.linalg.norm((plus - minus) / (2 * step))
    np.testing.assert_allclose(norm, expected, rtol=accuracy)


def _advance(programs, program, job, steps, rates=(0.01, 0.1, 0.0)):
    runs, kinds = programs("runs"), programs("programs")
    order = runs.draw_order(job, program, steps, seed=0)
    state = program.start(kinds.Rates(*map(jnp.float32, rates)))
    advance = jax.jit(runs.make_advance(program))
    return advance(state, runs.blocks_of(job), order, 0, steps)


def test_a_table_of_one_batch_is_no_table(programs):
    single, jobs = programs("single_loop"), programs("jobs")
    job = jobs.ridge()
    one = {key: {k: v[:16] for k, v in rows.items()} for key, rows in job.data.items()}
    job = dataclasses.replace(job, data=one)
    table, plain = (
        _advance(programs, make(job), job, 50).point
        for make in (single.make_saba, single.make_soba)
    )
    assert np.abs(table.x - job.x).max() > 0.01
    for mine, other in zip(table, plain, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_after_an_epoch_at_rest_the_mean_of_a_table_is_the_full_gradient(programs):
    single, jobs = programs("single_loop"), programs("jobs")
    job = jobs.logistic()
    blocks = len(job.blocks("lower")["start"])
    state = _advance(programs, single.make_saba(job), job, blocks, (0.0, 0.0, 0.0))
    full = {k: jnp.asarray(v) for k, v in job.data["lower"].items()} | {"start": 0}
    expected = jax.grad(job.lower)(*map(jnp.asarray, (job.y, job.x)), full)
    np.testing.assert_allclose(state.more[0].mean, expected, rtol=1e-4, atol=1e-6)


def test_every_method_of_mlox_lowers_the_value(programs):
    run, tune, jobs = programs("run"), programs("tune"), programs("jobs")
    job = jobs.quadratic(budget=3000, samples=256)
    for name, method in run.METHODS.items():
        setting = tune.Setting(0.1, 0.03, 0.0, method.options[1])
        (curve,) = run.run(job, name, setting, seeds=1)
        assert curve["value"][-1] < 0.9 * curve["value"][0], name
