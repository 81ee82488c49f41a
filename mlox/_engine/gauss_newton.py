"""Gauss-Newton products: which problems have them."""

from __future__ import annotations

from collections.abc import Mapping

from mlox._graph.dependencies import Plan
from mlox._problem.composed import is_composed
from mlox._problem.problem import Problem
from mlox.methods import GaussNewton


def check_gauss_newton(plan: Plan, problems: Mapping[str, Problem]) -> None:
    """Raise ValueError if a problem with `GaussNewton` has no Gauss-Newton matrix."""
    for name, problem in problems.items():
        if not isinstance(problem.method, GaussNewton):
            continue
        if not is_composed(problem.loss_fn):
            raise ValueError(
                f"problem {name!r}: {problem.method} needs the parts of its loss; "
                "expected loss_fn=mlox.Composed(outputs, loss). Write it so, or use "
                "mlox.Implicit()."
            )
        if name in plan.totals:
            lowers = ", ".join(map(repr, sorted(plan.movers[name])))
            raise ValueError(
                f"problem {name!r}: {problem.method} is not defined for its answer, in "
                f"whose stationarity condition its own lowers respond ({lowers}). Use "
                "mlox.Implicit(), or coupling='direct'."
            )
