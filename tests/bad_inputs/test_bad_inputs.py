"""Every bad input raises (or warns), and the message names it and a remedy."""

import re

import pytest

from .case import observe
from .tables import CASES


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{case.area}: {case.what}") for case in CASES]
)
def test_bad_input_raises(case):
    error, message = observe(case)
    assert error is case.error, message
    assert re.search(case.match, message), message


def test_bad_inputs_are_all_tried():
    names = [(case.area, case.what) for case in CASES]
    assert len(names) == len(set(names)) >= 316
