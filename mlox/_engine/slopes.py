"""Warnings about optimizers that have no derivative where gradients are zero."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mlox._graph.dependencies import Plan
from mlox._problem.optimizer import pull_update, restart
from mlox._problem.problem import Problem
from mlox._problem.responsive import responsive_part
from mlox._utils.types import PyTree
from mlox._utils.warn import warn
from mlox.methods import Unrolled

# Adam's update has a square root of each entry, which a single zero entry suffices to
# meet. Clipping by a norm, and normalizing, have the square root of a sum: it has no
# derivative where all entries of a sum are zero. Where the other branch of a `where`
# is taken, its derivative still is 0 inf = NaN.


class InfiniteSlope(enum.Enum):
    """Where the update of an optimizer has no derivative; the value tells it."""

    ENTRIES = (
        "problem {name!r} is Unrolled, but its optimizer has an infinite derivative "
        "where an entry of the gradient is zero (Adam's square root of a zero second "
        "moment): one such entry makes the hypergradient NaN. Pass eps_root to "
        "optax.adam, about eps squared (eps_root=1e-16 for eps=1e-8; a larger one "
        "slows training down), or use mlox.Implicit()."
    )
    NORMS = (
        "problem {name!r} is Unrolled, but its optimizer takes a norm that has no "
        "derivative at a zero gradient (clipping by a norm, normalizing): if all that "
        "it measures is zero, such as the gradient of a masked task, or of a layer "
        "below zero weights, the hypergradient is NaN. Clip entries by optax.clip, or "
        "by a norm that is never zero, sqrt(|g|^2 + 1e-16), see docs/training.md, or "
        "use mlox.Implicit()."
    )


def warn_if_slopes_are_infinite(plan: Plan, problems: Sequence[Problem]) -> None:
    """Warn if an unrolled optimizer has no derivative where a gradient is zero."""
    for problem in problems:
        if not isinstance(problem.method, Unrolled):
            continue
        if problem.name in plan.responsive:
            found = find_infinite_slope(problem)
            if found is not None:
                warn(found.value.format(name=problem.name))


def find_infinite_slope(problem: Problem) -> InfiniteSlope | None:
    """Return where the update of a problem's optimizer has no derivative, or None."""
    fresh = restart(problem, problem.params)
    ones = responsive_part(fresh, jax.tree.map(jnp.ones_like, problem.params))
    pull = jax.jit(functools.partial(pull_update, fresh))
    loss = jnp.zeros(() if problem.tasks is None else (problem.tasks,))

    def is_infinite(entry: Callable[[jax.Array], jax.Array]) -> bool:
        gradient: PyTree = jax.tree.map(
            lambda x: entry(jnp.arange(x.size)).reshape(x.shape).astype(x.dtype),
            problem.params,
        )
        slopes = jax.tree.leaves(pull(gradient, ones, loss))
        return not all(bool(jnp.isfinite(x).all()) for x in slopes)

    if is_infinite(lambda i: i % 2):
        return InfiniteSlope.ENTRIES
    return InfiniteSlope.NORMS if is_infinite(jnp.zeros_like) else None
