"""The point of a hypergradient: each lower at its own last step."""

from __future__ import annotations

import jax

from mlox._cycle.batches import last_steps
from mlox._cycle.constants import last_constants
from mlox._cycle.draws import find_draws
from mlox._cycle.history import LowerRun, narrow_run
from mlox._cycle.replay import RunsRounds, make_replay
from mlox._cycle.windows import inner_step
from mlox._graph.dependencies import Plan
from mlox._hypergradient.point import (
    EvaluationPoint,
    StepInputs,
    constants_of,
    make_inputs,
)
from mlox._problem.responsive import stop_unresponsive
from mlox._utils.types import Batches

# The parameters are those after the step; batch, PRNG key, count and mutable state are
# those of the step itself, in every evaluation that a method makes (common random
# numbers). Two evaluations with different dropout masks would differ by noise, which a
# finite difference divides by its epsilon.


def point_at_last_steps(
    cycle: RunsRounds,
    plan: Plan,
    layer: int,
    name: str,
    run: LowerRun,
    batches: Batches,
) -> EvaluationPoint:
    """Return the point at which the next step of a problem is differentiated."""
    graph = plan.graph
    run = narrow_run(run, plan.scope[name])
    lower = [n for n in run.state if graph.layer_of[n] < layer]

    def inputs_of(n: str) -> StepInputs:
        problem = run.state[n]
        batch, step, model_state, replay = None, problem.step, problem.model_state, None
        constants, draws = {}, None
        if n == name:
            batch, constants = batches[n], constants_of(graph.constants(n), run.state)
        elif n in lower:
            batch = last_steps(graph, layer, n, batches, 1)
            batch = run.history.samples.get(n, batch)
            step, model_state = problem.step - 1, run.history.model_states[n]
            constants = last_constants(graph, n, run)
            draws = find_draws(plan, n, run, batches)
            if n in plan.replayed:
                replay = make_replay(cycle, graph, n, layer, run, batches)
        rng = None if problem.rng is None else jax.random.fold_in(problem.rng, step)
        inner = inner_step(problem, step, run.history)
        return make_inputs(
            problem, batch, rng, step, inner, model_state, constants, replay
        )._replace(draws=draws)

    return EvaluationPoint(
        params={
            n: stop_unresponsive(problem, problem.params)
            if n in lower
            else problem.params
            for n, problem in run.state.items()
        },
        multipliers={},
        inputs={n: inputs_of(n) for n in run.state},
    )
