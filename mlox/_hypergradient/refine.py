"""Hypergradients at refined answers, which are reported as if they were not refined."""

from __future__ import annotations

from mlox._graph.dependencies import Plan
from mlox._hypergradient.adjoint import Hypergradient
from mlox._hypergradient.attach import prepare_point
from mlox._hypergradient.cost import cost
from mlox._hypergradient.lagrangian import replay_windows
from mlox._hypergradient.newton import configured_steps, no_steps
from mlox._hypergradient.point import EvaluationPoint


def report_actual(
    plan: Plan, k: str, actual: EvaluationPoint, found: Hypergradient
) -> Hypergradient:
    """Return a hypergradient with the metrics and the mutable state at actual answers.

    Those that solvers report are left: they are about what was differentiated.
    """
    if not any(configured_steps(b, actual) for b in plan.attached[k]):
        return found
    point = prepare_point(plan, k, actual, no_steps)
    point = replay_windows(plan, plan.responses[k].replayed, point)
    metrics, model_state = cost(plan, k, point)[1]
    return found._replace(metrics={**found.metrics, **metrics}, model_state=model_state)
