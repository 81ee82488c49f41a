"""Planted faults are faults, and healthy programs are right, by numbers."""

import pytest

from .case import as_parameters
from .tables import FAULTS, HEALTHY

# Tried in every run; all of them take a minute.
CHEAP = ("ridge regression, the default", "a cold start", "a fit that reads no penalty")


# Some faults are told at once, when the engine is built or traced.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", as_parameters(FAULTS, CHEAP))
def test_planted_fault_is_far_off(case):
    assert case.error(*case.build()) > 0.1


@pytest.mark.parametrize("case", as_parameters(HEALTHY, CHEAP))
def test_healthy_program_is_right(case):
    assert case.error(*case.build()) < 0.02


def test_programs_are_enough():
    names = [case.name for case in (*FAULTS, *HEALTHY)]
    assert len(names) == len(set(names)) >= 60
    assert len({case.cause for case in FAULTS}) == 21
    assert not any(case.cause for case in HEALTHY)
