"""Warnings about optimizers that have no derivative where gradients are zero."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer

from mlox._graph.dependencies import Plan
from mlox._problem.optimizer import pull_step, restart
from mlox._problem.problem import Problem
from mlox._problem.responsive import responsive_part
from mlox._utils.types import PyTree
from mlox._utils.warn import warn
from mlox.methods import Iterative

# Adam's update has a square root of each entry, which a single zero entry suffices to
# meet. Clipping by a norm, and normalizing, have the square root of a sum: it has no
# derivative where all entries of a sum are zero. Where the other branch of a `where`
# is taken, its derivative still is 0 inf = NaN.


class InfiniteSlope(enum.Enum):
    """Where the update of an optimizer has no derivative; the value tells it."""

    ENTRIES = (
        "problem {name!r} is {method}, but its optimizer has an infinite derivative "
        "where an entry of the gradient is zero (Adam's square root of a zero second "
        "moment): one such entry makes the hypergradient NaN. Pass eps_root to "
        "optax.adam, about eps squared (eps_root=1e-16 for eps=1e-8; a larger one "
        "slows training down), or use mlox.Implicit()."
    )
    NORMS = (
        "problem {name!r} is {method}, but its optimizer takes a norm that has no "
        "derivative at a zero gradient (clipping by a norm, normalizing): if all that "
        "it measures is zero, such as the gradient of a masked task, or of a layer "
        "below zero weights, the hypergradient is NaN. Clip entries by optax.clip, or "
        "by a norm that is never zero, sqrt(|g|^2 + 1e-16), see docs/training.md, or "
        "use mlox.Implicit()."
    )


def warn_if_slopes_are_infinite(plan: Plan, problems: Sequence[Problem]) -> None:
    """Warn if an unrolled optimizer has no derivative where a gradient is zero."""
    for problem in problems:
        if not isinstance(problem.method, Iterative) or _is_traced(problem.params):
            continue
        if problem.name in plan.responsive:
            found = find_infinite_slope(problem)
            if found is not None:
                method = type(problem.method).__name__
                warn(found.value.format(name=problem.name, method=method))


def find_infinite_slope(problem: Problem) -> InfiniteSlope | None:
    """Return where the update of a problem's optimizer has no derivative, or None."""
    if _is_finite(problem, jnp.zeros_like):
        return None
    # One zero is told from zeros alone where a leaf has a second entry, in each task.
    pairs = dataclasses.replace(problem, params=_double_scalars(problem))
    parts = problem.tasks or 1
    one_zero = lambda x: jnp.arange(x.size).reshape(x.shape) % (x.size // parts) != 0
    finite = _is_finite(pairs, one_zero)
    return InfiniteSlope.NORMS if finite else InfiniteSlope.ENTRIES


def _is_finite(problem: Problem, entries: Callable[[jax.Array], jax.Array]) -> bool:
    """Return whether the first update has finite slopes at a gradient."""

    # One program, in which XLA fuses what is as large as the parameters. It must not
    # know the gradient: what it folds and simplifies can be finite where a step is not.
    @jax.jit
    def is_finite(params: PyTree, one: jax.Array) -> jax.Array:
        fresh = dataclasses.replace(restart(problem, params), project=None)
        ones = responsive_part(fresh, jax.tree.map(jnp.ones_like, params))
        hide = lambda x: x * one.astype(x.dtype)
        gradient = jax.tree.map(lambda x: hide(entries(x).astype(x.dtype)), params)
        loss = jnp.zeros(() if problem.tasks is None else (problem.tasks,))
        slopes = jax.tree.leaves(pull_step(fresh, gradient, ones, loss)[0])
        return jnp.all(jnp.array([jnp.isfinite(x).all() for x in slopes]))

    return bool(is_finite(problem.params, jnp.float32(1)))


def _is_traced(params: PyTree) -> bool:
    """Return whether an engine is built while JAX traces, where no value is known."""
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(params))


def _double_scalars(problem: Problem) -> PyTree:
    """Return parameters whose leaves of one entry, in each task, have two."""
    parts = problem.tasks or 1
    mapped = problem.tasks is not None

    def double(x: jax.Array) -> jax.Array:
        if x.size != parts:
            return x
        one = x if x.ndim > mapped else x[..., None]
        return jnp.concatenate([one, one], axis=-1)

    return jax.tree.map(double, problem.params)
