"""The answer of a block, as its method sees it."""

from __future__ import annotations

from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.constraints import restrict
from mlox._hypergradient.draws import draws_of
from mlox._hypergradient.gauss_newton import linearized_residual
from mlox._hypergradient.lagrangian import residual
from mlox._hypergradient.point import EvaluationPoint
from mlox._hypergradient.update_map import pull_step, pull_update
from mlox.methods import Answer


def make_answer(plan: Plan, b: Block, point: EvaluationPoint) -> Answer:
    """Return the answer of a block at a point."""
    answer = Answer(
        point=point.select(b),
        residual=lambda y: residual(plan, b, y, point),
        system=b.system,
        pull_update=lambda vector: pull_update(plan, b, point, vector),
        by_rule=not plan.ruled.isdisjoint(b.names),
        linearized=linearized_residual(plan, b, point),
        draws=draws_of(plan, b, point),
    )
    if len(b.names) == 1:
        answer = answer._replace(
            pull_step=lambda vector: pull_step(plan, b, point, answer, vector)
        )
    return restrict(answer, plan, b, point)
