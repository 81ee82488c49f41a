"""The example of meta-learning runs, at a tiny size in a process of its own."""

import math
import pathlib
import re
import subprocess
import sys

import pytest

MAML = pathlib.Path(__file__).parents[1] / "examples" / "maml.py"


@pytest.mark.slow
def test_all_ways_are_in_the_table():
    done = subprocess.run(
        [sys.executable, MAML, "--cycles", "20", "--tasks", "50"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = {line[:18].strip(): re.findall(r"(\S+) ± (\S+)", line) for line in lines}
    names = ["no training", "joint training"]
    names += ["MAML", "first-order MAML", "implicit MAML"]
    assert [name for name, cells in rows.items() if cells] == names
    for name in names:
        assert len(rows[name]) == 4
        assert all(math.isfinite(float(mean)) for mean, _ in rows[name])
