"""An engine, as far as its texts and pictures need it."""

from __future__ import annotations

from typing import Protocol

from mlox._cycle.cycle import Cycle
from mlox._engine.step import Step
from mlox._problem.problem import Problem


class Described(Protocol):
    """Problems and the plan of their cycle."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems as they were given."""
        ...

    @property
    def cycle(self) -> Cycle:
        """The traced function and its plan."""
        ...

    @property
    def traced(self) -> Step:
        """The step as a value without arrays."""
        ...
