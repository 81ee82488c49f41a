"""Memories of methods: what an upper keeps of each answer that it differentiates."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.lagrangian import count_systems
from mlox._hypergradient.point import EvaluationPoint, Unknowns, present_point
from mlox._problem.problem import Problem
from mlox._problem.responsive import responsive_part
from mlox._utils.describe import annotate_errors
from mlox._utils.types import PyTree, State
from mlox.methods import MethodWithMemory, keeps_memory

# The memory of an upper k is {top of a block of its answers: what the method keeps}.
# Each upper has its own, since each has its own cotangents. The blocks are single
# problems: with a memory lambda is not linear in the cotangent, so it cannot be an
# unknown of a tower.


def recall(k: str, b: Block, point: EvaluationPoint) -> PyTree:
    """Return what k remembers of a block, as constants; None if it does not."""
    memory = point.inputs[k].problem.memory
    method = point.inputs[b.tops[0]].problem.method
    if memory is None or not isinstance(method, MethodWithMemory):
        return None
    return jax.lax.stop_gradient(memory.get(b.tops[0]))


def remember(memory: PyTree, b: Block, kept: PyTree) -> PyTree:
    """Return the memory of an upper with that of one block replaced."""
    if kept is None:
        return memory
    return {**memory, b.tops[0]: jax.lax.stop_gradient(kept)}


def remembers(problem: Problem) -> bool:
    """Return whether uppers keep a memory of the answer of a problem."""
    own = {problem.name: responsive_part(problem, problem.params)}
    with _in_start(problem):
        return keeps_memory(problem.method, Unknowns(own, {}))


def start_memories(
    plan: Plan, state: State, anew: Callable[[str, Block], bool]
) -> dict[str, Problem]:
    """Return a state, or a part of one, with the memories that its methods need.

    `anew` says whether what an upper remembers of a block starts anew.
    """
    keepers = {n for n, problem in state.items() if remembers(problem)}
    if not keepers and all(problem.memory is None for problem in state.values()):
        return dict(state)
    point = present_point(plan.graph, state, dict.fromkeys(state))

    def memory_of(k: str) -> PyTree:
        memory: dict[str, PyTree] = {}
        for b in plan.responses[k].blocks:
            top, old = b.tops[0], state[k].memory or {}
            if top in keepers and (top not in old or anew(k, b)):
                memory[top] = _start(plan, b, point)
            elif top in old and (top in keepers or top not in state):
                memory[top] = old[top]
        return memory

    return {
        k: dataclasses.replace(problem, memory=memory_of(k) or None)
        for k, problem in state.items()
    }


def _start(plan: Plan, b: Block, point: EvaluationPoint) -> PyTree:
    """Return the first memory of a block."""
    top = point.inputs[b.tops[0]].problem
    method: Any = top.method
    tasks = count_systems(plan, b, point)
    start = method.start if tasks is None else jax.vmap(method.start)
    with _in_start(top):
        return start(point.select(b))


def _in_start(problem: Problem) -> contextlib.AbstractContextManager[None]:
    name, method = problem.name, problem.method
    return annotate_errors(f"start of the method of problem {name!r}, {method}")
