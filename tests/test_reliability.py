"""The table of bad inputs and faults: every one is tried, and the page is no older."""

import importlib
import pathlib
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"

# Orbax leaves an event loop behind where a file of a checkpoint is damaged.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def script():
    before = [*sys.path]
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("reliability")
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def inputs(script):
    return script.tried(script.bad_inputs())


def test_no_bad_input_is_taken_without_a_word(inputs):
    silent = [row[:2] for row in inputs if row[2] == "nothing"]
    assert len(inputs) >= 60
    assert not silent


def test_no_case_is_tried_twice(inputs):
    cases = [row[:2] for row in inputs]
    assert len(cases) == len(set(cases))


def test_the_page_is_what_the_script_would_write(script, inputs):
    found = script.page(inputs, script.suffered(script.faults())).splitlines()
    written = script.PAGE.read_text(encoding="utf-8").splitlines()
    changed = [line for line in found if line not in written]
    remedy = "run benchmarks/reliability.py"
    assert changed == [], remedy
    assert found == written, remedy
