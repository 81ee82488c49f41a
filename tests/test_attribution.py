"""Data attribution: scores that predict trainings, and the program that measures it."""

import json
import os
import pathlib

import jax
import numpy as np
import optax
import pytest

import mlox

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"
SMALL = ["--quick", "--steps", "4", "--batch", "20", "--trainings", "4"]


@pytest.fixture(autouse=True)
def strict_promotion():
    """Compute as a program does that is run by itself."""
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.enable_x64(False),
    ):
        yield


def study(scores, rows=40, columns=6, steps=30, trainings=30):
    """Draw a small job: a softmax regression on all rows at once."""
    rng = np.random.default_rng(0)
    draw = lambda count: (
        rng.normal(size=(count, columns)).astype(np.float32),
        rng.integers(3, size=count).astype(np.int32),
    )
    train, valid, test = draw(rows), draw(8), draw(8)
    index = np.tile(np.arange(rows), (steps, 1))
    data = (train[0][index], train[1][index], index)
    start = [(np.zeros((columns, 3), np.float32), np.zeros(3, np.float32))]
    kept = scores.leave_out(rng, rows, 0.1, trainings).astype(np.float32)
    return scores.Study(start, train, data, valid, test, kept)


def test_the_derivative_predicts_trainings_and_shuffled_scores_do_not(programs):
    scores, tx = programs("_scores"), optax.sgd(0.1)
    job = study(scores)
    find = scores.attribute(
        job, tx, mlox.Unrolled(levels=0), job.data, {"params": job.w}
    )
    found = np.asarray(scores.retrain(tx, job.w, job.data, job.kept, job.test))
    queries = scores.queries_of(job.test)
    exact = {kind: find(query) for kind, query in queries.items()}
    shuffle = np.random.default_rng(0).permutation(job.kept.shape[1])
    shuffled = {kind: x[:, shuffle] for kind, x in exact.items()}
    assert exact["mean"][0] == pytest.approx(
        exact["images"].mean(0), rel=1e-3, abs=1e-7
    )
    assert min(scores.judge(exact, job.kept, found).values()) > 0.95
    assert max(scores.judge(shuffled, job.kept, found).values()) < 0.5


@pytest.mark.slow  # trains on digits
def test_a_small_run_writes_and_prints_its_results(programs, tmp_path, capsys):
    cores = os.sched_getaffinity(0)
    try:
        programs("attribution").main([*SMALL, "--results", str(tmp_path)])
    finally:
        os.sched_setaffinity(0, cores)
    found = json.loads((tmp_path / "attribution.json").read_text())
    assert found["sizes"] == {
        "steps": 4,
        "batch": 20,
        "trainings": 4,
        "rows": 4000,
        "seeds": 1,
    }
    assert str(tmp_path) not in json.dumps(found)
    assert found["cost"]["one training"]["ratio"] == [1, 1, 1]
    assert set(found["lds"][0]) > {programs("attribution").THROUGH}
    page = programs("attribution").section(found)
    assert page in capsys.readouterr().out
    assert "## Data attribution" in page
