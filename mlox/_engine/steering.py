"""Optimizers that read uppers: checked, and told where no derivative comes from it."""

from __future__ import annotations

from collections.abc import Sequence

from mlox._cycle.hyperparams import find_steering
from mlox._graph.dependencies import Plan
from mlox._problem.problem import Problem
from mlox._utils.describe import show_call
from mlox._utils.warn import warn


def check_steering(plan: Plan, problems: Sequence[Problem]) -> None:
    """Raise if `hyperparams` do not fit an optimizer; warn if an upper learns nothing.

    Raises:
        TypeError, ValueError: If they do not return numbers that the optimizer has.
    """
    by_name = {problem.name: problem for problem in problems}
    for name, problem in by_name.items():
        reads = find_steering(plan, name, by_name).reads
        uppers = [n for n in reads if n in plan.graph.uppers(name)]
        if uppers and name not in plan.unrolled:
            warn(
                f"the optimizer of {name!r} reads {', '.join(map(repr, uppers))} by "
                f"hyperparams=, but {show_call(problem.method)} does not differentiate "
                f"its steps: u2l={{{uppers[0]!r}: [{name!r}]}} carries no derivative "
                f"through them. Pass method=mlox.Unrolled() to {name!r}."
            )
