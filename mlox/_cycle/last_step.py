"""The point of a hypergradient: each lower at its own last step.

A hypergradient is evaluated at the parameters after that step, with its batch, the PRNG
key of it and the mutable state before it, in every evaluation that a method makes
(common random numbers): dropout masks that differ between two evaluations would be read
as a derivative.
"""

from __future__ import annotations

import jax

from mlox._cycle.batches import last_steps
from mlox._cycle.history import LowerRun
from mlox._cycle.replay import RunsRounds, make_replay
from mlox._graph.dependencies import Plan
from mlox._hypergradient.point import EvaluationPoint, StepInputs, make_inputs
from mlox._problem.responsive import stop_unresponsive
from mlox._utils.types import Batches


def point_at_last_steps(
    cycle: RunsRounds,
    plan: Plan,
    layer: int,
    name: str,
    run: LowerRun,
    batches: Batches,
) -> EvaluationPoint:
    """Return the point at which a problem is differentiated.

    Args:
        cycle: Runs windows again.
        plan: Which answers respond.
        layer: The layer of the problem.
        name: The problem; it is at its next step.
        run: What the rounds below the layer have led to.
        batches: The batches of the layer's window.
    """
    graph = plan.graph
    lower = frozenset(graph.names_below(layer))

    def inputs_of(n: str) -> StepInputs:
        problem = run.state[n]
        batch, step, model_state, replay = None, problem.step, problem.model_state, None
        if n == name:
            batch = batches[n]
        elif n in lower:
            batch = last_steps(graph, layer, n, batches, 1)
            batch = run.history.samples.get(n, batch)
            step, model_state = problem.step - 1, run.history.model_states[n]
            if n in plan.replayed:
                replay = make_replay(cycle, graph, n, layer, run, batches)
        rng = None if problem.rng is None else jax.random.fold_in(problem.rng, step)
        return make_inputs(problem, batch, rng, step, model_state, replay)

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
