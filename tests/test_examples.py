"""The examples run, each at a small size in a process of its own."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def output(name, *options, **environment):
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *options],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def error_of(line):
    return float(line.split()[-1])


def printed(name, *options):
    done = output(name, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def row(lines, name):
    """Return the means in the row of a table."""
    (line,) = (line for line in lines if re.match(rf"{re.escape(name)}  +\d", line))
    return [float(mean) for mean in re.findall(r"(\S+) ± ", line)]


@pytest.mark.slow
def test_logistic_regression():
    lines = printed("logistic_regression", "--seeds", "1", "--cycles", "20")
    (check,) = (line for line in lines if line.startswith("hypergradient against"))
    assert error_of(check) < 1e-5
    for name in ("no penalty", "one L2", "one each, last", "one each, chosen"):
        assert len(row(lines, name)) == 4
    assert row(lines, "one each, last")[0] < row(lines, "one L2")[0]


@pytest.mark.slow
def test_long_tailed():
    options = ("--data", "digits", "--seeds", "1", "--steps", "20", "--clean", "5")
    lines = printed("long_tailed", *options)
    assert "images of each class: 137" in "\n".join(lines)
    for weights in ("equal", "balanced", "mlox"):
        for train in ("", " + clean"):
            assert all(0 <= part <= 1 for part in row(lines, weights + train))


@pytest.mark.slow
def test_three_levels():
    lines = printed("three_levels", "--seeds", "1", "--cycles", "2")
    errors = {
        line.split()[0]: error_of(line)
        for line in lines
        if " level" not in line and re.match("(total|direct) ", line)
    }
    assert errors["total"] < 1e-7 < 1e-1 < errors["direct"]
    rows = ("A, equal weights", "A, good sources only", "B and C")
    for name in (*rows, "A, two levels", "A, three levels"):
        assert len(row(lines, name)) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "file"),
    [
        ("logistic_regression", "newsgroups", "newsgroups_train.jsonl.gz"),
        ("long_tailed", "fashion", "fashion_mnist.npz"),
    ],
)
def test_missing_data_is_named(name, data, file, tmp_path):
    done = output(name, "--data", data, MLOX_DATA=str(tmp_path))
    assert done.returncode == 1
    assert f"Found no {file}: MLOX_DATA is '{tmp_path}'" in done.stderr


@pytest.mark.slow
def test_flax_training_loop():
    lines = printed("flax_training_loop", "--steps", "20", "--seeds", "1")
    assert lines[0].endswith("test accuracy after 20 steps")
    for name in ("as before", "with mlox"):
        (accuracy,) = row(lines, name)
        assert 0 < accuracy <= 1


@pytest.mark.slow
def test_learned_schedule(tmp_path):
    picture = tmp_path / "picture.png"
    options = ("--cycles", "4", "--seeds", "1", "--grid", "20", "--out", picture)
    lines = printed("learned_schedule", *options)
    assert [line.split()[0] for line in lines[1:3]] == ["best", "learned"]
    assert re.fullmatch(r".* than the grid: [01] of 1 seeds", lines[3])
    assert picture.stat().st_size > 0


@pytest.mark.slow
def test_population():
    lines = printed("population", "--cycles", "3", "--seeds", "2")
    assert "seeds, mean and standard deviation" in lines[0]
    rows = [re.fullmatch(r"  (\S.*?) +(\S+) ± (\S+)", line) for line in lines[1:5]]
    assert all(0 <= float(row[2]) <= 1 for row in rows)
    assert lines[5].startswith("8 programs at once: ")


@pytest.mark.slow
def test_mean_teacher():
    lines = printed("mean_teacher", "--steps", "20", "--seeds", "1")
    assert lines[0] == "test accuracy with 8 labels, 20 steps"
    for name in ("labels alone", "student", "teacher"):
        (accuracy,) = row(lines, name)
        assert 0 < accuracy <= 1


@pytest.mark.slow
def test_gan(tmp_path):
    picture = tmp_path / "gan.png"
    lines = printed("gan", "--cycles", "4", "--seeds", "2", "--out", str(picture))
    for name in ("simultaneous", "alternating", "unrolled"):
        assert all(0 <= mean <= 8 for mean in row(lines, name))
    assert picture.stat().st_size > 10_000
