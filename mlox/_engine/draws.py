"""Draws: where products cannot go round several batches."""

from __future__ import annotations

from collections.abc import Mapping

from mlox._graph.dependencies import Plan
from mlox._problem.problem import Problem
from mlox.methods import count_draws


def check_draws(plan: Plan, problems: Mapping[str, Problem]) -> None:
    """Raise ValueError if a method asks for draws that an answer does not have."""
    for upper, response in plan.responses.items():
        for block in response.blocks:
            top = problems[block.tops[0]]
            draws = count_draws(top.method)
            if draws == 1:
                continue
            if len(block.names) > 1:
                names = ", ".join(map(repr, reversed(block.names)))
                raise ValueError(
                    f"problem {top.name!r}: {top.method} asks for several draws, but "
                    f"its answer to {upper!r} is one system with its lowers ({names}), "
                    "which have batches of their own. Leave draws out, or use "
                    "coupling='direct'."
                )
            steps = plan.graph.steps_in_window(plan.graph.layer_of[upper], top.name)
            if draws > steps and top.sample is None:
                raise ValueError(
                    f"problem {top.name!r}: {top.method} asks for {draws} draws, but "
                    f"{upper!r} steps after every {steps} of {top.name!r}. Set "
                    f"draws={steps} or unroll_steps={draws}, or make batches by "
                    "sample=."
                )
