"""Refined answers: where they are not defined, and where they are known to hurt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlox._graph.dependencies import Plan
from mlox._hypergradient.newton import steps_of, why_not_stationary
from mlox._problem.problem import Problem
from mlox._utils.warn import warn


def check_refined(plan: Plan, problems: Mapping[str, Problem]) -> None:
    """Raise ValueError if an answer is to be refined that no Newton step approaches."""
    for upper, blocks in plan.attached.items():
        for block in blocks:
            top = problems[block.tops[0]]
            if steps_of(top) and (why := why_not_stationary(plan, block, problems)):
                raise ValueError(
                    f"problem {top.name!r}: {top.method} cannot refine its answer to "
                    f"{upper!r}, since {why} Or leave refine out."
                )


def warn_if_refined_on_samples(plan: Plan, problems: Sequence[Problem]) -> None:
    """Warn if an answer is refined on a batch that is another one in each step."""
    for problem in problems:
        drawn = problem.sample is not None and problem.rng is not None
        if drawn and steps_of(problem) and problem.name in plan.implicit:
            warn(
                f"problem {problem.name!r} samples another batch in each step, and "
                f"refine={steps_of(problem)} takes Newton steps on the last one "
                "alone: a settled answer is moved by the noise of that batch, and the "
                "hypergradient gets worse. Leave refine out, or use one batch for all "
                "steps."
            )
