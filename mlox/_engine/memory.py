"""Memories of methods: where they are refused, and whether a state has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import jax

from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.memory import remembers, start_memories
from mlox._problem.problem import Problem
from mlox._utils.describe import show_differences
from mlox._utils.types import State
from mlox._utils.warn import warn
from mlox.methods import SOBA, Detached


def check_memory(plan: Plan, problems: Mapping[str, Problem]) -> None:
    """Raise ValueError where a multiplier must be linear, but its method remembers."""
    for upper, block, top in _find_remembered(plan, problems):
        if why := _why_linear(plan, upper, block, problems):
            raise ValueError(
                f"problem {top.name!r}: {top.method} keeps a memory, but {why}, so "
                "that its multiplier must be linear in the cotangent. Use a method "
                "without memory, such as mlox.Implicit()."
            )
        if isinstance(top.method, SOBA) and top.reset is not None:
            raise ValueError(
                f"problem {top.name!r}: {top.method} needs an inner loop that goes on "
                f"from step to step of {upper!r}, but reset starts it anew each time, "
                "and its multiplier stays zero. Drop reset, or use mlox.Implicit()."
            )


def warn_if_memory_is_reset(plan: Plan, problems: Sequence[Problem]) -> None:
    """Warn of memories that start anew before each step that could use them."""
    by_name = {problem.name: problem for problem in problems}
    for upper, block, top in _find_remembered(plan, by_name):
        if any(by_name[n].reset is not None for n in block.names):
            warn(
                f"problem {top.name!r} has reset, which starts its answer to {upper!r} "
                f"anew before each step, and with it the memory of {top.method}: it "
                "does nothing. Use a method without memory (warm_start=False), or drop "
                "reset."
            )


def check_memories(plan: Plan, state: State) -> None:
    """Raise ValueError unless a state has the memories that its methods need."""
    expected = jax.eval_shape(lambda: start_memories(plan, state, lambda k, b: True))
    for name, problem in state.items():
        if wrong := show_differences(problem.memory, expected[name].memory):
            wrong = "it is None" if problem.memory is None else wrong
            raise ValueError(
                f"problem {name!r}: memory does not fit the methods of its lowers: "
                f"{wrong}. Start from engine.init(): it makes the memories. To go on "
                "from a state whose methods have changed, build the engine with its "
                "problems, mlox.Engine(list(state.values()), ...)."
            )


def list_remembered(
    plan: Plan, problems: Mapping[str, Problem]
) -> dict[str, list[str]]:
    """List what each problem remembers: the answers of problems below."""
    found: dict[str, list[str]] = {name: [] for name in problems}
    for upper, _, top in _find_remembered(plan, problems):
        found[upper].append(top.name)
    return found


def _find_remembered(
    plan: Plan, problems: Mapping[str, Problem]
) -> Iterator[tuple[str, Block, Problem]]:
    """Yield (upper, block, its top) for each answer of which there is a memory."""
    keepers = {n for n, problem in problems.items() if remembers(problem)}
    for upper, response in plan.responses.items():
        for block in response.blocks:
            if block.tops[0] in keepers:
                yield upper, block, problems[block.tops[0]]


def _why_linear(
    plan: Plan, upper: str, block: Block, problems: Mapping[str, Problem]
) -> str | None:
    """Return why a multiplier of a block must be linear in the cotangent, or None."""
    if len(block.names) > 1:
        names = ", ".join(map(repr, reversed(block.names)))
        return f"its answer to {upper!r} is one system with its lowers ({names})"
    if upper not in plan.responsive:
        return None
    if upper in plan.totals:
        return f"{upper!r} answers to its total objective, of which it is a part"
    if upper in plan.unrolled and not isinstance(problems[upper].method, Detached):
        return f"the steps of {upper!r} are differentiated, which use it"
    return None
