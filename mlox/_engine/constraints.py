"""Constraints whose curvature would be left out: sets inside of a tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlox._graph.dependencies import Plan
from mlox._problem.problem import Problem
from mlox._utils.tree import norm
from mlox._utils.types import PyTree
from mlox._utils.warn import warn


def warn_if_curved_inside(plan: Plan, problems: Sequence[Problem]) -> None:
    """Warn of curved sets inside of a tower, where only flat ones are exact."""
    by_name = {problem.name: problem for problem in problems}
    blocks = [b for response in plan.responses.values() for b in response.blocks]
    inside = {n: b.tops[0] for b in blocks for n in b.names if n not in b.tops}
    for name in sorted(inside):
        if by_name[name].project is not None and is_curved(by_name[name]):
            warn(
                f"problem {name!r} has project= onto a curved set, such as a ball, and "
                f"its answer is a part of that of {inside[name]!r} in one linear "
                "system, which holds the tangents of the set and not its curvature: "
                "the hypergradient is wrong where the constraint is active. Use "
                "mlox.Unrolled() for it, or a polyhedron such as a box."
            )


def is_curved(problem: Problem) -> bool:
    """Return whether the derivative of a projection is no projection far outside."""
    # P'(z) = J has J J = J for a polyhedron wherever P has a derivative.
    project: Any = problem.project
    if problem.tasks is not None:
        project = jax.vmap(project)

    def bend(z: PyTree, v: PyTree) -> jax.Array:
        push = jax.linearize(project, z)[1]
        once = push(v)
        return norm(jax.tree.map(jnp.subtract, once, push(once))) / norm(v)

    # Numbers of its own, since an engine may be built while a program is traced.
    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(0))
        away, along = (optax.tree.random_like(key, problem.params) for key in keys)
        far = jax.tree.map(lambda x: (100 * x).astype(x.dtype), away)
        return bool(bend(far, along) > 1e-3)
