"""Every fault ends as it should, and what was reached before it is not lost."""

import pathlib
import re

import pytest

from ..bad_inputs.checkpoints import save_three
from .checkpoints import FILES, NEWEST, files_of
from .fault import observe
from .tables import FAULTS

# Orbax leaves an event loop behind where a file of a checkpoint is damaged.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            fault,
            id=f"{fault.area}: {fault.what}",
            # Each of these resumes once for every kind of damage.
            marks=pytest.mark.slow if "a file of the newest" in fault.area else (),
        )
        for fault in FAULTS
    ],
)
def test_fault_loses_nothing(fault):
    seen = observe(fault)
    assert re.search(fault.action, seen.action)
    assert re.search(fault.remains, seen.remains)


def test_faults_are_all_provoked():
    names = [(fault.area, fault.what) for fault in FAULTS]
    assert len(names) == len(set(names)) >= 50


def test_faults_damage_every_file_of_a_checkpoint(tmp_path: pathlib.Path):
    save_three(tmp_path)
    assert files_of(tmp_path / "run" / NEWEST) == sorted(FILES)
