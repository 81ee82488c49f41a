"""Checks of an engine: of its problems when it is built, of each step when traced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from mlox._engine.draws import check_draws
from mlox._engine.gauss_newton import check_gauss_newton
from mlox._engine.memory import check_memories, check_memory
from mlox._engine.refine import check_refined
from mlox._graph.dependencies import Block, Plan
from mlox._graph.graph import Graph
from mlox._problem.optimizer import optimizer_of
from mlox._problem.problem import Problem
from mlox._problem.task_chunk import tasks_of_batches
from mlox._problem.validation import check_opt_state, check_params, check_parts
from mlox._utils.describe import summarize
from mlox._utils.fields import Kind, check, check_arrays, instance_of
from mlox._utils.types import Batches, State
from mlox.methods import Iterative, Loop, reach
from mlox.solvers import System

LIST = instance_of(Sequence, "a list of problems")
PROBLEM = instance_of(Problem, "a problem, made by mlox.Problem.create")
ONE_BATCH = Kind(
    "one batch, a pytree of arrays, e.g. next(iterator)",
    lambda x: not isinstance(x, Iterator),
    TypeError,
)
INDEFINITE = {
    System.SYMMETRIC: "symmetric but indefinite, as lowers of its own respond",
    System.GENERAL: "not symmetric, a Nash game over a lower that its tops share",
}
REMEDY = (
    "Use mlox.Implicit(mlox.GMRES()) for {name}, or mlox.Implicit(), which picks a "
    "fitting solver, or coupling='direct'."
)


def check_problems(problems: Any) -> None:
    """Raise TypeError unless an engine is given a list of problems."""
    check("Engine: problems", problems, LIST)
    for i, problem in enumerate(problems):
        check(f"Engine: problems[{i}]", problem, PROBLEM)


def name_of_known(task: str, names: Sequence[str], problem: str | Problem) -> str:
    """Return the name of a problem of an engine; raise ValueError for another one."""
    name = problem.name if isinstance(problem, Problem) else problem
    if name not in names:
        raise ValueError(
            f"{task} of {summarize(name)}: no such problem; the engine has "
            f"{sorted(names)}."
        )
    return name


def check_methods(plan: Plan, problems: Mapping[str, Problem]) -> None:
    """Raise ValueError if options of problems do not fit their place in the graph."""
    graph = plan.graph
    given = {"u2l": graph.u2l, "l2u": graph.l2u, "reads": graph.plain}
    for kind, edges in given.items():
        for first, second in edges:
            tasks = problems[first].tasks, problems[second].tasks
            if None not in tasks and tasks[0] != tasks[1]:
                raise ValueError(
                    f"{kind} edge {first!r} -> {second!r} has tasks={tasks[0]} and "
                    f"tasks={tasks[1]} at its ends; expected equal numbers, or None "
                    "for a problem that all tasks share."
                )
    for name, problem in problems.items():
        if problem.reset is not None and name not in graph.inner_layer:
            raise ValueError(
                f"problem {name!r} has reset= but no inner loop, since no upper reads "
                f"its answer. Add l2u={{{name!r}: [...]}}, or drop reset."
            )
    check_gauss_newton(plan, problems)
    check_memory(plan, problems)
    check_draws(plan, problems)
    for upper, response in plan.responses.items():
        for block in response.blocks:
            _check_block(block, upper, problems)
    check_refined(plan, problems)
    for upper, run, shared, solved in plan.conflicts:
        raise ValueError(
            f"problems {run!r} and {solved!r} lead {shared!r}, which they share, and "
            f"{upper!r} differentiates both answers: {run!r} is unrolled, but its "
            f"steps would take {solved!r} as fixed. Give both mlox.Unrolled() or both "
            "mlox.Implicit(), or use coupling='direct'."
        )
    for name, layer in plan.differentiated_at.items():
        method = problems[name].method
        steps = method.last_steps if isinstance(method, Iterative) else None
        per_round = plan.steps_per_round(name, layer)
        if steps is not None and steps % per_round:
            raise ValueError(
                f"problem {name!r}: {method} ends within a round "
                f"of {per_round} steps in the window of {graph.layers[layer][0]!r}. "
                f"Choose a multiple of {per_round}."
            )


def _check_block(block: Block, upper: str, problems: Mapping[str, Problem]) -> None:
    """Raise ValueError if the methods of a block cannot solve its linear system."""
    first, *others = block.tops
    method = problems[first].method
    for top in others:
        if problems[top].method != method:
            raise ValueError(
                f"problems {first!r} and {top!r} share a lower, so their answers to "
                f"{upper!r} are one linear system, but their methods differ: {method} "
                f"and {problems[top].method}. {REMEDY.format(name='both')}"
            )
    if System.NONE < reach(method) < block.system:
        raise ValueError(
            f"problem {first!r}: {method} cannot solve for its answer to {upper!r}: "
            f"the system of {', '.join(reversed(block.names))} is "
            f"{INDEFINITE[block.system]}. {REMEDY.format(name=repr(first))}"
        )


def check_state(plan: Plan, state: State) -> None:
    """Raise TypeError or ValueError unless an engine was built for such a state."""
    hint = "Start from engine.init(), and change problems with replace."
    _check_keys("state", state, plan.graph, hint, TypeError)
    for name, problem in state.items():
        check(f"state[{name!r}]", problem, PROBLEM, hint)
        same = Kind(repr(name), lambda x, name=name: x == name, TypeError)
        check(f"state[{name!r}].name", problem.name, same, hint)
    check_methods(plan, state)
    steps = dict(zip(plan.graph.names, plan.graph.unroll_steps, strict=True))
    for name, problem in state.items():
        built = steps[name], name in plan.unrolled, name in plan.can_be_total
        method, unroll_steps = problem.method, problem.unroll_steps
        kinds = isinstance(method, Loop), reach(method) > System.NONE
        if (unroll_steps, *kinds) != built:
            raise ValueError(
                f"problem {name!r}: method or unroll_steps in the state ({method}, "
                f"{unroll_steps}) differ from those that the engine was built with. "
                "Build a new Engine with the changed problem; the state can stay."
            )
        # `replace` leaves arrays unchecked.
        check_parts(name, {n: vars(problem)[n] for n in ("step", "rng", "loss_scale")})
        check_params(name, problem.params)
        check_arrays(f"problem {name!r}: model_state", problem.model_state)
        check_opt_state(name, optimizer_of(problem), problem.params, problem.opt_state)
    check_memories(plan, state)


def _check_keys(
    label: str, given: Any, graph: Graph, hint: str, error: type[Exception]
) -> None:
    """Raise unless a value is a dict with the names of all problems as its keys."""
    names = sorted(graph.names)
    expected = f"a dict with the keys {names}"
    check(label, given, Kind(expected, lambda x: isinstance(x, Mapping), error), hint)
    has_names = Kind(str(names), lambda _: set(given) == set(names))
    check(f"{label}.keys()", sorted(map(str, given)), has_names, hint)


def check_donated(state: State) -> None:
    """Raise ValueError if the buffers of a state were donated to an earlier call."""
    values = dict(state) if isinstance(state, Mapping) else state
    for path, leaf in jax.tree_util.tree_leaves_with_path(values):
        concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
        if concrete and leaf.is_deleted():
            raise ValueError(
                f"state{jax.tree_util.keystr(path)} was donated to an earlier call, "
                "which used its memory. Go on with the state that the call returned, "
                "or pass donate=False to it."
            )


def check_one_program(what: str) -> None:
    """Raise ValueError within `jax.shard_map` and `jax.pmap`.

    Each device would step by the gradients of its own share of the batches, and the
    copies of the state would drift apart, without an error if `check_vma` is False.
    """
    axes = jax.sharding.get_abstract_mesh().manual_axes
    if axes:
        raise ValueError(
            f"{what} was called within jax.shard_map or jax.pmap, over the axes "
            f"{sorted(map(str, axes))}, where each device would train alone, on its "
            "own share of the batches. Use jax.jit with a state of mlox.shard and "
            "batches of mlox.shard_batches; for independent runs, jax.vmap or tasks=."
        )


def check_batches(graph: Graph, state: State, batches: Batches) -> None:
    """Raise TypeError or ValueError unless batches fit the schedule and the tasks."""
    hint = "Pass None for a problem without data. engine.stack makes batches."
    _check_keys("batches", batches, graph, hint, ValueError)
    for name, batch in batches.items():
        label, tasks = f"batches[{name!r}]", tasks_of_batches(state[name])
        if state[name].sample is not None:
            expected = f"None, since {name!r} samples its own batches"
            check(label, batch, Kind(expected, lambda x: x is None))
        check_arrays(label, batch)
        axes = {"steps in a cycle": graph.steps_per_cycle[name]}
        axes |= {} if tasks is None else {"tasks": tasks}
        sizes = tuple(axes.values())
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            if np.shape(leaf)[: len(sizes)] != sizes:
                counts = " and ".join(f"{size} {axis}" for axis, size in axes.items())
                raise ValueError(
                    f"{label}{jax.tree_util.keystr(path)} has shape {np.shape(leaf)}; "
                    f"expected [{', '.join(map(str, sizes))}, ...] for {counts}. "
                    "engine.stack makes such batches."
                )


def check_batch(name: str, tasks: int | None, batch: Any) -> None:
    """Raise ValueError unless one batch has an axis of the tasks of its problem."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if tasks is not None and np.shape(leaf)[:1] != (tasks,):
            raise ValueError(
                f"evaluate of {name!r}: batch{jax.tree_util.keystr(path)} has shape "
                f"{np.shape(leaf)}; expected [{tasks}, ...] for {tasks} tasks, without "
                "an axis of steps."
            )
