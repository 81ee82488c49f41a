"""The programs of the gallery run, each at a small size in a process of its own."""

import functools
import math
import os
import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"

# Each program: its options, and rows of its table, the baseline among them.
SMALL = {
    "architecture_search": (
        "--seeds 1 --steps 3",
        ["random, mean", "best of random", "FiniteDifference", "SAMA", "unrolled"],
    ),
    "data_attribution": (
        "--seeds 1 --steps 20",
        ["gradient products", "TracIn", "influence functions", "through training"],
    ),
    "dataset_distillation": (
        "--seeds 1 --steps 50 --starts 1",
        ["random, tuned", "k-means, tuned", "distilled, tuned"],
    ),
    "kernel_hyperparameters": (
        "--seeds 1 --steps 2",
        ["one length, grid", "random, 1000", "mlox, 2 steps"],
    ),
    "domain_adaptation": (
        "--seeds 1 --steps 10",
        ["target alone", "equal weights", "mlox"],
    ),
    "learned_reward": (
        "--seeds 1 --steps 20",
        ["constant baseline", "mean baseline", "learned reward"],
    ),
    "data_rater": (
        "--seeds 1 --steps 50",
        ["all data", "random subset", "loss filter", "rater", "as written only"],
    ),
    "data_cleaning": (
        "--data digits --seeds 1 --steps 200",
        ["noisy", "clean alone", "both", "mlox", "oracle"],
    ),
    "flax_training_loop": ("--steps 40 --seeds 1", ["as before", "with mlox"]),
    "gan": (
        "--cycles 4 --seeds 2",
        [f"{way}, rate 0.03" for way in ("simultaneous", "alternating", "unrolled")],
    ),
    "learned_schedule": (
        "--cycles 4 --seeds 1 --grid 20",
        ["best of the grid", "learned"],
    ),
    "logistic_regression": (
        "--seeds 1 --cycles 20",
        ["no penalty", "one L2", "one each, last", "one each, chosen"],
    ),
    "long_tailed": (
        "--data digits --seeds 1 --steps 20 --clean 5",
        ["equal", "balanced", "size^-p", "mlox", "equal + clean", "mlox + clean"],
    ),
    "maml": (
        "--cycles 20 --tasks 50 --seeds 1",
        ["no training", "joint training", "MAML", "first-order MAML", "implicit MAML"],
    ),
    "mean_teacher": (
        "--steps 20 --seeds 1",
        ["labels alone", "student", "teacher"],
    ),
    "noisy_reviews": (
        "--seeds 1 --steps 100 --size 200 --clean 40",
        ["noisy", "clean alone", "both", "small losses", "mlox", "oracle"],
    ),
    "population": ("--cycles 20 --seeds 2", ["equal weights", "learning rate 0.01"]),
    "three_levels": (
        "--seeds 1 --cycles 2",
        ["A, equal weights", "A, good sources only", "B and C", "A, three levels"],
    ),
    "three_players": ("--seeds 1", ["price takers", "response", "cartel"]),
}


def output(name, *options, **environment):
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *options],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@functools.cache  # so that a test may read what another one ran
def printed(name, folder):
    picture = folder / f"{name}.png"
    done = output(name, *SMALL[name][0].split(), "--out", str(picture))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("examples")


def row(lines, name):
    """Return the means in the row of a table."""
    form = rf" *{re.escape(name)}  +-?\d\S* ± "
    (line,) = (line for line in lines if re.match(form, line))
    return [float(mean) for mean in re.findall(r"(\S+) ± ", line)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_program_prints_a_table_and_draws_a_picture(name, folder):
    lines = printed(name, folder)
    for expected in SMALL[name][1]:
        means = row(lines, expected)
        assert means, expected
        assert all(map(math.isfinite, means)), expected
    assert 5_000 < (folder / f"{name}.png").stat().st_size < 80_000


def error_of(line):
    return float(line.split()[-1])


@pytest.mark.slow
def test_logistic_regression_has_an_exact_hypergradient_and_fits_with_it(folder):
    lines = printed("logistic_regression", folder)
    (check,) = (line for line in lines if line.startswith("hypergradient against"))
    assert error_of(check) < 1e-5
    assert row(lines, "one each, last")[0] < row(lines, "one L2")[0]


@pytest.mark.slow
def test_three_levels_has_an_exact_gradient_with_total_coupling(folder):
    lines = printed("three_levels", folder)
    errors = {
        line.split()[0]: error_of(line)
        for line in lines
        if " level" not in line and re.match("(total|direct) ", line)
    }
    assert errors["total"] < 1e-7 < 1e-1 < errors["direct"]


@pytest.mark.slow
def test_three_players_reaches_each_equilibrium_in_closed_form(folder):
    lines = printed("three_players", folder)
    errors = [error_of(line) for line in lines[-3:]]
    assert max(errors) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "file"),
    [
        ("logistic_regression", "newsgroups", "newsgroups_train.jsonl.gz"),
        ("long_tailed", "fashion", "fashion_mnist.npz"),
        ("noisy_reviews", "reviews", "reviews.jsonl.gz"),
    ],
)
def test_missing_data_is_named(name, data, file, tmp_path):
    done = output(name, "--data", data, MLOX_DATA=str(tmp_path))
    assert done.returncode == 1
    assert f"Found no {file}: MLOX_DATA is '{tmp_path}'" in done.stderr
