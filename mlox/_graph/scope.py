"""What a gradient depends on, so that nothing walks over all problems for each one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from mlox._graph.graph import Graph

# A trace that visits every problem for each problem grows as their square: 128
# independent pairs had 386,561 equations. So values hold what they depend on, alone:
# they are as large as the connected part of the graph in which they are.


def find_rerun(graph: Graph, name: str) -> frozenset[str]:
    """Return the problems that a replay of the last window of a problem runs.

    They are those below it, and those of the lower layers that these read, in turn.
    """
    inside = graph.layer_of[name]
    return _reach(
        graph.below[name],
        lambda n: (m for m in graph.reads(n) if graph.layer_of[m] < inside),
    )


def find_held(graph: Graph, inside: Sequence[str]) -> frozenset[str]:
    """Return what some problems read as constants, and not among themselves.

    A replay sees them as they were. Where another one of these problems reads one of
    them along an edge, all of them see it there: at the point of the evaluation.
    """
    seen = {b for n in inside for b in graph.constants(n)}
    linked = {b for n in inside for b in graph.neighbours(n)}
    return frozenset(seen - linked).difference(inside)


def find_scope(graph: Graph, name: str, inside: Iterable[str]) -> frozenset[str]:
    """Return the problems on which the gradient of a problem depends.

    They are it, those below, those `inside` the replays that it makes, and what all of
    these read.
    """
    members = {name, *graph.below[name], *inside}
    return frozenset(members).union(*(graph.reads(n) for n in members))


def group_pulls(
    names: Iterable[str],
    answers: Mapping[str, Sequence[str]],
    readers: Mapping[str, Sequence[str]],
) -> tuple[tuple[str, ...], ...]:
    """Group problems of one layer whose cotangents can be pulled back as one sum.

    With the answers u_k of problem k among the group, the pull-back of the sum of all
    cotangents gives k

        sum over j of <c_j, du_j/dtheta_k>,

    of which only j = k is meant: the other answers must not be reached from theta_k.

    Args:
        names: The problems.
        answers: Their unrolled answers.
        readers: The problems of the lower layers whose steps depend on each problem.
    """
    groups: list[_Group] = []
    for name in names:
        reached = _reach([name], lambda n: readers.get(n, ()))
        own = frozenset(answers[name])
        fits = (
            i
            for i, group in enumerate(groups)
            if reached.isdisjoint(group.answers) and own.isdisjoint(group.reached)
        )
        i = next(fits, len(groups))
        group = groups[i] if i < len(groups) else _Group()
        groups[i : i + 1] = [
            _Group((*group.names, name), group.reached | reached, group.answers | own)
        ]
    return tuple(group.names for group in groups)


class _Group(NamedTuple):
    names: tuple[str, ...] = ()
    reached: frozenset[str] = frozenset()
    answers: frozenset[str] = frozenset()


def _reach(
    start: Iterable[str], following: Callable[[str], Iterable[str]]
) -> frozenset[str]:
    """Return all problems that are reached from some."""
    seen, pending = set(start), list(start)
    while pending:
        more = [m for m in following(pending.pop()) if m not in seen]
        seen.update(more)
        pending += more
    return frozenset(seen)
