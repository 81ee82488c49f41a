"""Tasks: functions of a point, mapped over the tasks of its problems."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlox._hypergradient.point import (
    Constant,
    Draws,
    EvaluationPoint,
    StepInputs,
    Unknowns,
)
from mlox._problem.problem import Problem
from mlox._problem.task_chunk import (
    find_at_once,
    number_tasks,
    stacked_parts,
    tasks_of_batches,
)
from mlox._utils.chunks import vmap_in_chunks
from mlox._utils.tree import combine, partition
from mlox._utils.types import Metrics, PyTree

# A problem with `tasks` holds N copies of everything, stacked along one axis. What the
# mathematics defines for one problem is mapped over that axis by `jax.vmap`: the
# cost is the sum of the losses, so that the gradient of one task does not depend on how
# many others there are, and each task has a linear system of its own.

# The suffix of metrics that are kept for each task, beside their mean.
PER_TASK = "_per_task"


class _TaskData(NamedTuple):
    """What a step of each task is given, with a leading axis of tasks.

    The batch is None if all tasks share it.
    """

    number: jax.Array
    batch: PyTree
    rng: jax.Array | None


class _TaskArrays(NamedTuple):
    """The other arrays of one problem that have a leading axis of tasks."""

    params: PyTree
    model_state: PyTree
    problem: dict[str, PyTree]
    constants: dict[str, Constant]


def count_tasks(names: Iterable[str], point: EvaluationPoint) -> int | None:
    """Return the number of tasks that some problems share, or None."""
    counts = {point.inputs[n].problem.tasks for n in names}
    return counts.pop() if len(counts) == 1 else None


def at_once(point: EvaluationPoint, tasks: int | None) -> int | None:
    """Return how many of so many tasks are computed at a time; None for all."""
    problems = (inputs.problem for inputs in point.inputs.values())
    return None if tasks is None else find_at_once(problems, tasks)


def map_tasks(
    function: Callable[..., PyTree], tasks: int, point: EvaluationPoint, *stacked: Any
) -> PyTree:
    """Return what `function(point, *parts)` returns for each task, stacked.

    The function sees one task of each problem with that many tasks, and not the others.
    The parts are those of `stacked`, pytrees with a leading axis of tasks.
    """
    point_of, (data, arrays, multipliers) = separate_tasks(tasks, point)
    draws = {n: _draws_of_tasks(point.inputs[n]) for n in data}

    def of_task(
        parts: tuple[Any, Mapping[str, Draws | None]],
        arrays: Any,
        multipliers: Any,
        *stacked: Any,
    ) -> PyTree:
        data, draws = parts
        one = point_of(data, arrays, multipliers)
        inputs = {
            n: _with_draws(one.inputs[n], draws[n], point.inputs[n]) for n in data
        }
        return function(one._replace(inputs={**one.inputs, **inputs}), *stacked)

    # Draws have an axis of steps before that of tasks, which is not moved: a copy.
    of_tasks = vmap_in_chunks(of_task, tasks, at_once(point, tasks), (0, 1))
    return of_tasks((data, draws), arrays, multipliers, *stacked)


def separate_tasks(
    tasks: int, point: EvaluationPoint
) -> tuple[Callable[..., EvaluationPoint], tuple[PyTree, PyTree, PyTree]]:
    """Return the arrays of a point with an axis of tasks, and (one of each) -> point.

    The first of them is data, without derivatives. The point of a task has no draws.
    """
    # All other arrays are closed over, hence the same for all tasks.
    mapped = {n: i for n, i in point.inputs.items() if i.problem.tasks == tasks}
    own = _mark_multipliers(point.multipliers, mapped)

    def point_of(
        data: Mapping[str, _TaskData],
        arrays: Mapping[str, _TaskArrays],
        multipliers: Mapping[str, Unknowns],
    ) -> EvaluationPoint:
        params = {n: arrays[n].params for n in mapped}
        inputs = {n: _select_task(i, data[n], arrays[n]) for n, i in mapped.items()}
        return EvaluationPoint(
            {**point.params, **params},
            combine(multipliers, point.multipliers),
            {**point.inputs, **inputs},
        )

    data = {
        n: _TaskData(
            number_tasks(i.problem),
            None if tasks_of_batches(i.problem) is None else i.batch,
            i.rng,
        )
        for n, i in mapped.items()
    }
    arrays = {n: _stacked_arrays(point, n, mapped) for n in mapped}
    return point_of, (data, arrays, partition(own, point.multipliers))


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


def _stacked_arrays(
    point: EvaluationPoint, name: str, mapped: Collection[str]
) -> _TaskArrays:
    inputs = point.inputs[name]
    parts = stacked_parts(inputs.problem)
    constants = {n: seen for n, seen in inputs.constants.items() if n in mapped}
    return _TaskArrays(point.params[name], inputs.model_state, parts, constants)


def _select_task(
    inputs: StepInputs, data: _TaskData, arrays: _TaskArrays
) -> StepInputs:
    none: dict[str, Any] = {"tasks": None, "tasks_at_once": None}
    shared = tasks_of_batches(inputs.problem) is None
    problem = dataclasses.replace(inputs.problem, **none, **arrays.problem)
    return inputs._replace(
        problem=problem,
        batch=inputs.batch if shared else data.batch,
        rng=data.rng,
        model_state=arrays.model_state,
        replay=None,
        draws=None,
        constants={**inputs.constants, **arrays.constants},
        task_index=data.number,
    )


def _draws_of_tasks(inputs: StepInputs) -> Draws | None:
    """Return the part of a problem's draws that has an axis of tasks."""
    if inputs.draws is None or tasks_of_batches(inputs.problem) is not None:
        return inputs.draws
    return inputs.draws._replace(batches=None)


def _with_draws(one: StepInputs, draws: Draws | None, whole: StepInputs) -> StepInputs:
    """Return the inputs of a task with its draws; all tasks may share the batches."""
    shared = whole.draws if tasks_of_batches(whole.problem) is None else None
    if draws is not None and shared is not None:
        draws = draws._replace(batches=shared.batches)
    return one._replace(draws=draws)


def _mark_multipliers(
    multipliers: Mapping[str, Unknowns], mapped: Iterable[str]
) -> dict[str, Unknowns]:
    """Return which multipliers have an axis of tasks."""
    return {
        tower: Unknowns(
            {n: n in mapped for n in found.params},
            _mark_multipliers(found.multipliers, mapped),
        )
        for tower, found in multipliers.items()
    }
