"""Chunks of tasks: whole inner loops of some of them, one chunk after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax

from mlox._cycle.chunk_metrics import join_metrics
from mlox._cycle.history import History
from mlox._graph.dependencies import Plan
from mlox._hypergradient.lagrangian import solves_together
from mlox._problem.problem import Problem
from mlox._problem.task_chunk import (
    find_at_once,
    join_chunks,
    stacked_parts,
    take_chunk,
    tasks_of_batches,
)
from mlox._utils.chunks import Chunks
from mlox._utils.types import Batches, Metrics, PyTree, State

# Tasks do not read one another. So the rounds of a window can be run on some of the
# tasks, then on others, if all problems that step in it have the same tasks; reverse
# mode then stores what one chunk needs. If others step in between, or one loss scale
# or one linear system serves all tasks, the rounds are run together, and each cost is
# evaluated in chunks, see mlox/_hypergradient/tasks.py.

Run = Callable[[State, History, Batches], tuple[State, History, Metrics]]


def run_in_chunks(
    plan: Plan,
    layer: int,
    run: Run,
    unroll: bool,
    telemetry: bool,
    last: bool,
    state: State,
    history: History,
    batches: Batches,
) -> tuple[State, History, Metrics]:
    """Run the rounds of a layer's window on chunks of tasks, if problems ask for it.

    `run` makes the rounds on the state that it is given. `last` says that its metrics
    are those of the last round alone.
    """
    names = [n for n in plan.graph.names_below(layer) if n in batches]
    chunks = _find_chunks(plan, names, state)
    if chunks is None:
        return run(state, history, batches)
    mapped = {n: p for n, p in state.items() if p.tasks == chunks.tasks}
    axes = {n: 1 if plan.graph.steps_in_window(layer, n) > 1 else 0 for n in names}

    def list_parts(problem: Problem) -> dict[str, PyTree]:
        if problem.tasks != chunks.tasks:
            return {}
        # A problem that does not step needs no memory of what is below it.
        memory = problem.memory if problem.name in names else None
        return {**stacked_parts(problem), "memory": memory}

    def run_chunk(chunk: jax.Array, arrays: PyTree) -> PyTree:
        of_state, of_history = arrays
        part = {n: take_chunk(state[n], chunks, chunk, x) for n, x in of_state.items()}
        after, kept, metrics = run(
            {**state, **part},
            _take_history(history, chunks, chunk, of_history),
            {
                n: batches[n]
                if tasks_of_batches(state[n]) is None
                else chunks.take(batches[n], chunk, axes[n])
                for n in names
            },
        )
        return {n: after[n] for n in names}, _below(kept, names), metrics

    of_state = {n: list_parts(problem) for n, problem in mapped.items()}
    of_history = _list_arrays(history, names, mapped, list_parts)
    arrays = chunks.split((of_state, of_history))
    found, kept, metrics = chunks.scan(run_chunk, arrays, unroll)
    after = {n: join_chunks(state[n], chunks, problem) for n, problem in found.items()}
    return (
        {**state, **after},
        _join_history(history, chunks, mapped, kept),
        join_metrics(
            chunks, dict.fromkeys(axes, 0) if last else axes, metrics, telemetry
        ),
    )


def _find_chunks(plan: Plan, names: Iterable[str], state: State) -> Chunks | None:
    """Return the chunks in which the loops of some problems are run, or None."""
    problems = [state[n] for n in names]
    tasks = {problem.tasks for problem in problems}
    scaled = any(problem.loss_scale is not None for problem in problems)
    if len(tasks) != 1 or None in tasks or scaled or _share_systems(plan, names):
        return None
    number = tasks.pop()
    k = find_at_once(state.values(), number)
    return None if k is None or k == number else Chunks(number, k)


def _share_systems(plan: Plan, names: Iterable[str]) -> bool:
    """Return whether a linear system is about all tasks together."""
    blocks = (b for k in names for b in plan.responses[k].blocks)
    return any(solves_together(plan, b) for b in blocks)


# The history of the problems that step in the window has an axis of tasks: states,
# samples, and the problems at the start of earlier windows. What these problems read as
# constants has one if the problem that they read does.


def _below(history: History, names: Iterable[str]) -> History:
    """Return the history of some problems."""
    parts: Any = ({n: part[n] for n in names if n in part} for part in history)
    return History(*parts)


def _list_arrays(
    history: History,
    names: Iterable[str],
    mapped: Collection[str],
    list_parts: Callable[[Problem], dict[str, PyTree]],
) -> History:
    """Return the arrays with an axis of tasks in the history of some problems."""
    found = _below(history, names)
    constants = {
        n: {b: x for b, x in seen.items() if b in mapped}
        for n, seen in found.constants.items()
    }
    starts = _map_starts(list_parts, found.starts)
    return found._replace(starts=starts, constants=constants, first_steps={})


def _take_history(
    history: History, chunks: Chunks, chunk: jax.Array, arrays: History
) -> History:
    """Return a history with the tasks of a chunk, whose arrays are given."""

    def take(problem: Problem, parts: dict[str, PyTree]) -> Problem:
        if problem.tasks != chunks.tasks:
            return problem
        return take_chunk(problem, chunks, chunk, parts)

    starts = {n: history.starts[n] for n in arrays.starts}
    taken = arrays._replace(
        starts=_map_starts(take, starts, arrays.starts),
        constants={
            n: {**history.constants[n], **seen} for n, seen in arrays.constants.items()
        },
    )
    return _merge(history, taken)


def _join_history(
    history: History, chunks: Chunks, mapped: Collection[str], found: History
) -> History:
    """Return the history of all tasks from that of each chunk of them."""

    def join(problem: Problem, after: Any) -> Problem:
        if problem.tasks != chunks.tasks:
            return _first(after)
        return join_chunks(problem, chunks, after)

    starts = {n: history.starts[n] for n in found.starts}
    joined = History(
        chunks.join(found.model_states),
        chunks.join(found.samples),
        _map_starts(join, starts, found.starts),
        _first(found.first_steps),
        {
            n: {b: (chunks.join if b in mapped else _first)(x) for b, x in seen.items()}
            for n, seen in found.constants.items()
        },
    )
    return _merge(history, joined)


def _first(tree: PyTree) -> PyTree:
    """Return what the first chunk has, as all of them do."""
    return jax.tree.map(lambda x: x[0], tree)


def _merge(history: History, changed: History) -> History:
    pairs = zip(history, changed, strict=True)
    parts: Any = ({**old, **new} for old, new in pairs)
    return History(*parts)


def _map_starts(
    function: Callable[..., Any], *starts: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Apply a function to each problem at the start of a window."""
    return {
        n: {m: function(*(each[n][m] for each in starts)) for m in problems}
        for n, problems in starts[0].items()
    }
