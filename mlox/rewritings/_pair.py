"""The pair of an upper and its lower that a rewriting is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mlox._engine.validation import name_of_known
from mlox._graph.dependencies import Plan
from mlox._problem.problem import Problem


class Pair(NamedTuple):
    """An upper and its lower, the problem whose answer is rewritten."""

    upper: Problem
    lower: Problem


def find_pair(
    rewriting: str, problems: Mapping[str, Problem], plan: Plan, lower: str | Problem
) -> Pair:
    """Return the pair that a lower is in.

    Raises:
        ValueError: If the lower is unknown, has none or several uppers, or lowers of
            its own, or if its upper answers to a problem above.
    """
    graph = plan.graph
    name = name_of_known(rewriting, graph.names, lower)
    label = f"{rewriting}: the lower {name!r}"
    above = tuple(dict.fromkeys(p for c, p in graph.l2u if c == name))
    if len(above) != 1:
        found = f"is read by {' and '.join(above)}" if above else "is read by no upper"
        remedy = (
            "Give each upper a lower of its own, or differentiate the answer by "
            "mlox.Implicit() or another method."
            if above
            else f"Add l2u={{{name!r}: [...]}}."
        )
        raise ValueError(f"{label} {found}; expected one l2u edge. {remedy}")
    (upper,) = above
    if graph.uppers(name) != (upper,):
        others = [p for p in graph.uppers(name) if p != upper]
        found = f"also reads {' and '.join(others)}" if others else "does not read it"
        remedy = (
            f"Declare it as a constant, reads={{{name!r}: {others!r}}}, if it is meant "
            "to be one; else differentiate the answer by mlox.Implicit()."
            if others
            else f"Add u2l={{{upper!r}: [{name!r}]}}."
        )
        raise ValueError(
            f"{label} {found}; expected u2l edges from its upper {upper!r} alone. "
            f"{remedy}"
        )
    if below := graph.lowers(name):
        raise ValueError(
            f"{label} has the lower {below[0]!r} of its own; expected one without. "
            f"Differentiate the answer of {name!r} by mlox.Implicit(); or rewrite "
            f"{below[0]!r}, if nothing differentiates the answer of {name!r}."
        )
    if upper in plan.responsive:
        raise ValueError(
            f"{label} has the upper {upper!r}, which answers to a problem above; "
            "expected the highest answer of its chain, as the response of "
            f"{name!r} would be missing in that of {upper!r}. Use mlox.Implicit() for "
            f"{name!r}, as it is exact at any depth."
        )
    pair = Pair(problems[upper], problems[name])
    _check_options(label, pair)
    return pair


def check_new_name(rewriting: str, name: str, problems: Mapping[str, Problem]) -> None:
    """Raise ValueError if a problem has the name of one that a rewriting adds."""
    if name in problems:
        raise ValueError(
            f"{rewriting} adds a problem {name!r}, but there is one of that name. "
            "Rename it."
        )


def _check_options(label: str, pair: Pair) -> None:
    upper, lower = pair
    if upper.tasks is not None and lower.tasks is None:
        raise ValueError(
            f"{label} has no tasks, but its upper {upper.name!r} has "
            f"tasks={upper.tasks}: each would need the answer to all others. Give "
            f"{lower.name!r} tasks={upper.tasks}, or {upper.name!r} none."
        )
    if lower.meta_trainable is not None:
        raise ValueError(
            f"{label} has meta_trainable=; expected None, since all that is trained "
            "responds. Pass trainable=, or differentiate the answer by "
            "mlox.Implicit()."
        )
