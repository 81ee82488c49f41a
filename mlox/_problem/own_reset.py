"""Resets that decide themselves what begins anew with a window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from mlox._problem.context import Context
from mlox._problem.problem import Problem
from mlox._utils.types import PyTree


@runtime_checkable
class OwnReset(Protocol):
    """A `reset` that sees the whole problem at the start of each window.

    A plain function begins the inner loop anew with every window, in all tasks.
    """

    def __call__(self, params: PyTree, ctx: Context, /) -> PyTree:
        """Return the parameters with which an inner loop begins anew."""
        ...

    def begin(self, problem: Problem, start: Callable[[Problem], Problem]) -> Problem:
        """Return the problem with which a window begins.

        Args:
            problem: The problem at the end of the window before, with all tasks that
                are run together.
            start: Begins the inner loops of all of these anew, with the parameters of
                `__call__` and a new state of the optimizer.
        """
        ...
