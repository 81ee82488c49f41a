"""Tasks: functions of a point, mapped over the tasks of its problems."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlox._hypergradient.point import EvaluationPoint, StepInputs, Unknowns
from mlox._problem.problem import Problem
from mlox._utils.types import Metrics, PyTree

# A problem with `tasks` holds N copies of everything, stacked along one axis. What the
# mathematics defines for one problem is mapped over that axis by `jax.vmap`: the
# cost is the sum of the losses, so that the gradient of one task does not depend on how
# many others there are, and each task has a linear system of its own.

# The suffix of metrics that are kept for each task, beside their mean.
PER_TASK = "_per_task"


class _TaskArrays(NamedTuple):
    """The arrays of one problem that have a leading axis of tasks."""

    params: PyTree
    batch: PyTree
    rng: jax.Array | None
    model_state: PyTree
    problem: tuple[PyTree, PyTree, PyTree]


def count_tasks(names: Iterable[str], point: EvaluationPoint) -> int | None:
    """Return the number of tasks that some problems share, or None."""
    counts = {point.inputs[n].problem.tasks for n in names}
    return counts.pop() if len(counts) == 1 else None


def map_tasks(
    function: Callable[..., PyTree], tasks: int, point: EvaluationPoint, *stacked: Any
) -> PyTree:
    """Return what `function(point, *parts)` returns for each task, stacked.

    The function sees one task of each problem with that many tasks, and not the others.
    The parts are those of `stacked`, pytrees with a leading axis of tasks.
    """
    # All other arrays are closed over, hence the same for all tasks.
    mapped = {n: i for n, i in point.inputs.items() if i.problem.tasks == tasks}

    def of_task(
        arrays: Mapping[str, _TaskArrays],
        index: jax.Array,
        multipliers: Mapping[str, Unknowns],
        *parts: Any,
    ) -> PyTree:
        params = {n: arrays[n].params for n in mapped}
        inputs = {n: _select_task(i, arrays[n], index) for n, i in mapped.items()}
        one = EvaluationPoint(
            {**point.params, **params}, multipliers, {**point.inputs, **inputs}
        )
        return function(one, *parts)

    arrays = {n: _stacked_arrays(point, n) for n in mapped}
    axes = (0, 0, _multiplier_axes(point.multipliers, mapped), *(0 for _ in stacked))
    indices = jnp.arange(tasks, dtype=jnp.int32)
    return jax.vmap(of_task, in_axes=axes)(arrays, indices, point.multipliers, *stacked)


def map_if_tasks(
    function: Callable[[EvaluationPoint], PyTree], name: str, point: EvaluationPoint
) -> PyTree:
    """Apply a function to the point, or to that of each task of a problem."""
    tasks = point.inputs[name].problem.tasks
    return function(point) if tasks is None else map_tasks(function, tasks, point)


def mean_over_tasks(name: str, metrics: Metrics) -> Metrics:
    """Return the means of metrics of a problem over tasks, and the values of each.

    Raises:
        ValueError: If the values of one metric would have the name of another.
    """
    for key in sorted(metrics):
        if f"{key}{PER_TASK}" in metrics:
            raise ValueError(
                f"loss_fn of problem {name!r} returned the metric {key + PER_TASK!r}, "
                f"which is the name of the values of {key!r} for each of its tasks. "
                "Rename the metric."
            )
    means = {key: jnp.mean(x, axis=0) for key, x in metrics.items()}
    return {**{f"{key}{PER_TASK}": x for key, x in metrics.items()}, **means}


def losses_of(problem: Problem, metrics: Metrics) -> jax.Array:
    """Return the loss of a problem among its metrics: for each task, if it has any."""
    return metrics["loss" if problem.tasks is None else f"loss{PER_TASK}"]


def _stacked_arrays(point: EvaluationPoint, name: str) -> _TaskArrays:
    inputs = point.inputs[name]
    problem = inputs.problem
    own = (problem.params, problem.opt_state, problem.model_state)
    return _TaskArrays(
        point.params[name], inputs.batch, inputs.rng, inputs.model_state, own
    )


def _select_task(
    inputs: StepInputs, arrays: _TaskArrays, index: jax.Array
) -> StepInputs:
    params, opt_state, model_state = arrays.problem
    problem = dataclasses.replace(
        inputs.problem,
        tasks=None,
        params=params,
        opt_state=opt_state,
        model_state=model_state,
    )
    return inputs._replace(
        problem=problem,
        batch=arrays.batch,
        rng=arrays.rng,
        model_state=arrays.model_state,
        replay=None,
        task_index=index,
    )


def _multiplier_axes(
    multipliers: Mapping[str, Unknowns], mapped: Iterable[str]
) -> dict[str, Any]:
    """Return the axes of tasks in multipliers, None for those of other problems."""
    return {
        tower: Unknowns(
            {n: 0 if n in mapped else None for n in found.params},
            _multiplier_axes(found.multipliers, mapped),
        )
        for tower, found in multipliers.items()
    }
