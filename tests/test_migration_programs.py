"""The programs of the migration pages: mlox finds the numbers that the others print.

Each docs/migration/mlox_<name>.py stands beside the same program of another library,
whose last line of output is kept as .txt. Those run where that library is installed:

    pip install -e ".[test,migration]"
    pip install --no-deps --ignore-requires-python betty-ml==0.2.1
    pytest -m "" tests/test_migration_programs.py
"""

import importlib.util
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "migration"
THEIRS = {
    "reweighting": "betty",
    "penalty": "betty",
    "custom_root": "jaxopt",
    "fixed_point": "jaxopt",
    "inner_solver": "jaxopt",
    "maml": "torchopt",
    "implicit_maml": "torchopt",
    "learned_rate": "higher",
}
NEUMANN = slice(5)  # the numbers of "penalty" in which Betty makes no mistake
pytestmark = pytest.mark.slow


def numbers(line):
    return np.array([float(number) for number in line.split()])


def recorded(name):
    return numbers((FOLDER / f"{THEIRS[name]}_{name}.txt").read_text())


def run(program):
    done = subprocess.run(
        [sys.executable, FOLDER / f"{program}.py"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return numbers(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", THEIRS)
def test_mlox_prints_the_numbers_of_the_other_library(name):
    found, expected = run(f"mlox_{name}"), recorded(name)
    if name == "penalty":
        # Betty's conjugate gradients turn from an old residual: see the page.
        assert np.abs(found - expected)[5:].max() > 0.1
        np.testing.assert_allclose(found[5:], expected[NEUMANN], atol=1e-4)
        found, expected = found[NEUMANN], expected[NEUMANN]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", THEIRS)
def test_the_other_library_prints_its_record(name):
    if importlib.util.find_spec(THEIRS[name]) is None:
        pytest.skip(f"{THEIRS[name]} is not installed")
    found = run(f"{THEIRS[name]}_{name}")
    np.testing.assert_allclose(found, recorded(name), rtol=1e-6, atol=1e-9)


def test_every_program_is_compared():
    names = {path.stem for path in FOLDER.glob("*.py")}
    pairs = {f"{owner}_{name}" for name, owner in THEIRS.items()}
    assert names == pairs | {f"mlox_{name}" for name in THEIRS}
    pages = FOLDER.parent.glob("migrating_from_*.md")
    lines = "\n".join(page.read_text() for page in pages).splitlines()
    assert {f'--8<-- "docs/migration/{name}.py"' for name in names} <= set(lines)


@pytest.mark.parametrize("package", ["jaxopt", "torchopt", "higher"])
def test_the_names_of_the_tables_exist(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    page = "jaxopt" if package == "jaxopt" else "torchopt"
    text = (FOLDER.parent / f"migrating_from_{page}.md").read_text()
    names = sorted(set(re.findall(rf"`{package}((?:\.\w+)+)", text)))
    assert names
    lines = "\n".join(f"{package}{name}" for name in names)
    imports = f"import {package}\n" + "\n".join(
        f"import {package}.{module}" for module in SUBMODULES[package]
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}\n{lines}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


SUBMODULES = {
    "jaxopt": ["implicit_diff", "linear_solve"],
    "torchopt": ["nn"],
    "higher": ["optim", "patch"],
}
