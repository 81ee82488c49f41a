"""Multipliers that are NaN where a scaled loss has overflowed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mlox._hypergradient.point import EvaluationPoint, Unknowns
from mlox._utils.tree import find_unit, scale
from mlox.methods import Answer, reach, transposed_product
from mlox.solvers import System

# Under a loss scale an update is skipped, and the scale lowered, where a gradient is
# not finite. A solver hides that: CG and MINRES do not make a step that overflows, and
# return a finite lambda, zero if it is the first one. So the cotangent and, where a
# system is solved, its product with the matrix are looked at: what takes part in the
# first step, at the size of 1 that all vectors of a solver have.


def mark_overflow(
    answer: Answer, method: Any, v: Unknowns, lam: Unknowns, point: EvaluationPoint
) -> Unknowns:
    """Return lambda, or NaN if v or its product overflows; lambda without a scale."""
    if all(one.problem.loss_scale is None for one in point.inputs.values()):
        return lam
    seen = [v]
    if reach(method) is not System.NONE:
        seen.append(transposed_product(answer)(scale(1 / find_unit(v), v)))
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(seen)]).all()
    return jax.tree.map(lambda x: jnp.where(finite, x, jnp.nan), lam)
