"""The cost C_k of a problem at a point."""

from __future__ import annotations

from typing import Any

import jax

from mlox._graph.dependencies import Plan
from mlox._hypergradient.point import Constant, EvaluationPoint
from mlox._hypergradient.tasks import at_once, map_tasks, mean_over_tasks
from mlox._hypergradient.watch import watched
from mlox._problem.context import Context, Neighbour
from mlox._problem.loss_output import split_loss
from mlox._problem.loss_scaling import scale_cotangent
from mlox._utils.describe import annotate_errors
from mlox._utils.types import Metrics, PyTree

Aux = tuple[Metrics, PyTree]


def cost(
    plan: Plan, k: str, point: EvaluationPoint, *, train: bool = True
) -> tuple[jax.Array, Aux]:
    """Return C_k, summed over tasks, with the metrics and the mutable state after."""
    tasks = point.inputs[k].problem.tasks
    if tasks is None:
        return _evaluate_scaled(plan, k, point, train)
    losses, (metrics, model_state) = map_tasks(
        lambda one: _evaluate_scaled(plan, k, one, train), tasks, point
    )
    return losses.sum(), (mean_over_tasks(k, metrics), model_state)


def context_of(
    plan: Plan, k: str, point: EvaluationPoint, *, train: bool = True
) -> Context:
    """Return what the functions of a problem see besides their other arguments."""
    inputs = point.inputs[k]
    problems = {n: point.inputs[n].problem for n in plan.graph.reads(k)}
    # What is read as a constant was chosen with the inputs of the step.
    constants = jax.lax.stop_gradient(inputs.constants)
    seen = {
        **{
            n: Constant(watched(k, n, point.params[n]), problems[n].model_state)
            for n in plan.graph.neighbours(k)
        },
        **{n: constants[n] for n in plan.graph.constants(k)},
    }
    neighbours = {
        n: Neighbour(
            *seen[n],
            p.apply_fn,
            n,
            tasks=p.tasks,
            tasks_at_once=at_once(point, p.tasks),
            step=p.step,
        )
        for n, p in problems.items()
    }
    return Context(
        k,
        neighbours,
        inputs.rng,
        inputs.step,
        inputs.model_state,
        train=train,
        task_index=inputs.task_index,
        inner_step=inputs.inner_step,
    )


def _evaluate_scaled(
    plan: Plan, k: str, point: EvaluationPoint, train: bool
) -> tuple[jax.Array, Aux]:
    """Evaluate the loss; its derivatives are computed at the problem's loss scale."""
    loss_scale: Any = point.inputs[k].problem.loss_scale
    if loss_scale is None:
        return _evaluate(plan, k, point, train)
    # s(f(s^-1(x))), where s is the identity whose transpose multiplies by the scale. It
    # has the value and the gradient of f: a cotangent is multiplied by the scale where
    # it enters f, so that it does not underflow inside, and divided where it leaves.
    reads = {n: point.params[n] for n in (k, *plan.graph.neighbours(k))}
    point = point.at_params(scale_cotangent(reads, 1 / loss_scale.scale))
    loss, aux = _evaluate(plan, k, point, train)
    return scale_cotangent(loss, loss_scale.scale), aux


def _evaluate(
    plan: Plan, k: str, point: EvaluationPoint, train: bool
) -> tuple[jax.Array, Aux]:
    inputs = point.inputs[k]
    params, batch = watched(k, k, point.params[k]), inputs.batch
    ctx = context_of(plan, k, point, train=train)
    with annotate_errors(
        f"loss_fn of problem {k!r}",
        _missing(k, train),
        params=params,
        batch=batch,
        rng=ctx.rng,
        model_state=ctx.model_state,
    ):
        returned = inputs.problem.loss_fn(params, batch, ctx)
    loss, metrics, model_state = split_loss(k, returned, inputs.model_state)
    return loss, (metrics, model_state)


def _missing(k: str, train: bool) -> dict[str, str]:
    """Return how a problem gets what its loss may need, by argument."""
    data = f"data={{{k!r}: ...}} to run, or batches[{k!r}] to step"
    return {
        "batch": f"{k!r} got no data. Pass {data if train else 'batch to evaluate'}.",
        "rng": (
            f"{k!r} has no PRNG key. Pass rng=, e.g. rng=0, to "
            f"{'Problem.create' if train else 'evaluate'}."
        ),
        "model_state": (
            f"{k!r} has no mutable state. Pass model_state= to Problem.create."
        ),
    }
