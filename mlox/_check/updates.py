"""Probes of an optimizer: what its update does to a gradient."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlox._check.vectors import as_vector
from mlox._engine.slopes import InfiniteSlope, find_infinite_slope
from mlox._problem.optimizer import apply_gradients, restart
from mlox._problem.problem import Problem
from mlox._utils.types import PyTree
from mlox.methods import asymmetry


@dataclass(frozen=True)
class Updates:
    """What the optimizer of a lower does at its answer.

    Attributes:
        clipped: The length of the update, relative to what a linear optimizer would
            make of the gradient; below 1 if a clipping is at work. None if the update
            is not linear in small gradients.
        unprojected: How far `project` is from a projection: the asymmetry of its
            derivative at the next step, or how far a second application moves, relative
            to the first one; the larger one.
        infinite: Where the update has no derivative at a zero gradient, or None.
        floor: The size of an entry of the gradient at which an optimizer that
            normalizes begins to do so, its epsilon; None if it does not normalize.
        typical: The size of an entry of the present gradient.
        drifts: Whether the optimizer moves at a zero gradient, as weight decay does: it
            rests elsewhere than its loss.
    """

    clipped: float | None
    unprojected: float
    infinite: InfiniteSlope | None
    floor: float | None
    typical: float
    drifts: bool = False


def probe_updates(problem: Problem, gradient: PyTree) -> Updates:
    """Return what the optimizer of a problem does at its present parameters."""
    bare = dataclasses.replace(problem, project=None)
    fresh = restart(bare, problem.params)
    apply = jax.jit(_update)
    slope = as_vector(gradient)
    still = jax.tree.map(jnp.zeros_like, gradient)
    typical = float(np.sqrt(np.mean(slope**2))) if slope.size else 0.0
    return Updates(
        clipped=_find_clipping(apply, fresh, gradient),
        unprojected=_find_unprojected(problem, bare, gradient),
        infinite=find_infinite_slope(bare),
        floor=_find_floor(apply, fresh),
        typical=typical,
        drifts=_norm(as_vector(apply(fresh, still))) > 0,
    )


def _update(problem: Problem, gradient: PyTree) -> PyTree:
    loss = jnp.zeros((), jnp.result_type(*jax.tree.leaves(gradient)))
    if problem.tasks is not None:
        loss = jnp.zeros((problem.tasks,), loss.dtype)
    after = apply_gradients(problem, gradient, problem.model_state, loss)
    return jax.tree.map(jnp.subtract, after.params, problem.params)


def _find_unprojected(problem: Problem, bare: Problem, gradient: PyTree) -> float:
    """Return how far `project` is from a projection, at the end of the next step."""
    if problem.project is None:
        return 0.0
    project: Any = problem.project
    if problem.tasks is not None:
        project = jax.vmap(project)
    end = jax.tree.map(jnp.add, problem.params, _update(bare, gradient))

    @jax.jit
    def probe(end: PyTree) -> tuple[PyTree, PyTree, jax.Array]:
        once, push = jax.linearize(project, end)
        keys = jax.random.split(jax.random.key(0))
        x, y = (optax.tree.random_like(key, end) for key in keys)
        return once, project(once), asymmetry(push, x, y)

    once, twice, skew = probe(end)
    first, second = (
        _norm(as_vector(a) - as_vector(b)) for a, b in ((once, end), (twice, once))
    )
    return max(float(skew), second / first if first > 0 else 0.0)


def _find_clipping(apply: Any, problem: Problem, gradient: PyTree) -> float | None:
    """Return the length of the update, relative to what small gradients make of it."""

    def of(factor: float) -> np.ndarray:
        return as_vector(apply(problem, _times(gradient, factor)))

    none = of(0.0)
    small, smaller, whole = (of(c) - none for c in (1e-4, 1e-5, 1.0))
    if _norm(small) == 0 or _norm(10 * smaller - small) > 1e-3 * _norm(small):
        return None
    return _norm(whole) / (1e4 * _norm(small))


def _find_floor(apply: Any, problem: Problem) -> float | None:
    """Return the size of a gradient at which a fresh optimizer begins to normalize."""
    none = as_vector(apply(problem, jax.tree.map(np.zeros_like, problem.params)))

    def length(size: float) -> float:
        entries = jax.tree.map(
            lambda x: np.full(x.shape, size, x.dtype), problem.params
        )
        return _norm(as_vector(apply(problem, entries)) - none)

    full = length(1e3)
    if full == 0 or length(1e4) > 1.01 * full:
        return None
    low, high = 1e-15, 1e3
    while high > 1.01 * low:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if length(middle) > full / 2 else (middle, high)
    # Where it has begun twice as high, it is a clipping.
    return None if length(2.1 * high) > 0.99 * full else high


def _times(tree: PyTree, factor: float) -> PyTree:
    return jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), tree)


def _norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))
