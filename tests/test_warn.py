"""Warnings point to the line of the user, whatever is between."""

import warnings

import jax
import optax
import pytest

import mlox

from .small import GOOD, alone_loss, pair, problem

UNREAD = pair({"loss_fn": alone_loss})


def find_lines(program):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        program()
    assert {warning.filename for warning in told} == {__file__}
    return {warning.lineno for warning in told}


def lowered():
    jax.jit(UNREAD.step).lower(UNREAD.init(), GOOD)


def built():
    lower = problem(tx=optax.adam(0.1), method=mlox.Unrolled())
    upper = problem("penalty")
    mlox.Engine([upper, lower], {"penalty": ["fit"]}, {"fit": ["penalty"]})


@pytest.mark.parametrize("program", [lowered, built])
def test_warnings_point_to_the_line_of_the_user(program):
    first = program.__code__.co_firstlineno
    (line,) = find_lines(program)
    assert line == first + (3 if program is built else 1)
