"""A problem in a chunk of its tasks, and how tasks are numbered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax
import jax.numpy as jnp

from mlox._problem.problem import Problem
from mlox._utils.chunks import Chunks
from mlox._utils.types import PyTree

# The parts of a problem with tasks that have an axis of tasks.
STACKED = ("params", "opt_state", "model_state")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, kw_only=True, match_args=False, repr=False)
class TaskChunk(Problem):
    """A problem with some of its tasks, in a loop over chunks of them.

    Attributes:
        numbers: The indices of the tasks among all, int32 [tasks].
        total: The number of all tasks.
    """

    numbers: jax.Array
    total: int = field(metadata={"static": True})


def number_tasks(problem: Problem) -> jax.Array:
    """Return the indices of the tasks of a problem, int32 [tasks]."""
    if isinstance(problem, TaskChunk):
        return problem.numbers
    return jnp.arange(problem.tasks, dtype=jnp.int32)


def split_key(problem: Problem, key: jax.Array) -> jax.Array:
    """Return a key for each task of a problem, the same in whatever chunk it is."""
    if problem.shared_batches:
        return jnp.broadcast_to(key, (problem.tasks or 1, *key.shape))
    if isinstance(problem, TaskChunk):
        return jax.random.split(key, problem.total)[problem.numbers]
    return jax.random.split(key, problem.tasks or 1)


def tasks_of_batches(problem: Problem) -> int | None:
    """Return the size of the axis of tasks of a problem's batches, None without one."""
    shared = problem.shared_batches and problem.sample is None
    return None if shared else problem.tasks


def find_at_once(problems: Iterable[Problem], tasks: int) -> int | None:
    """Return how many tasks are there at a time: the least that a problem asks for."""
    asked = [p.tasks_at_once for p in problems if p.tasks == tasks]
    return min((k for k in asked if k is not None), default=None)


def stacked_parts(problem: Problem) -> dict[str, PyTree]:
    """Return the parts of a problem that have an axis of tasks."""
    return {name: vars(problem)[name] for name in STACKED}


def take_chunk(
    problem: Problem, chunks: Chunks, chunk: jax.Array, parts: dict[str, PyTree]
) -> TaskChunk:
    """Return a problem with the tasks of a chunk, whose stacked parts are given."""
    attributes = {f.name: vars(problem)[f.name] for f in fields(Problem)}
    own: dict[str, Any] = {"tasks": chunks.at_once, "tasks_at_once": None}
    numbers = chunks.number(chunk)
    return TaskChunk(
        **{**attributes, **own, **parts}, numbers=numbers, total=chunks.tasks
    )


def join_chunks(problem: Problem, chunks: Chunks, found: TaskChunk) -> Problem:
    """Return a problem with all its tasks after what happened to each chunk of them.

    Args:
        problem: The problem before.
        chunks: The chunks.
        found: The problem after, with a first axis of chunks.
    """
    after = {**stacked_parts(found), "memory": found.memory}
    parts = {n: chunks.join(part) for n, part in after.items() if part is not None}
    # No loss is scaled in chunks, and all tasks make the same steps.
    return replace(problem, **parts, step=found.step[0])
