"""Multipliers in units of their size, where float16 has no numbers so small."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mlox._hypergradient.point import EvaluationPoint
from mlox._problem.loss_transforms import computes_in
from mlox._problem.problem import Problem
from mlox._utils.tree import find_unit, scale
from mlox._utils.types import PyTree

# The numbers of float16 end at 6e-8. A multiplier is often smaller: that of `SAMA` is
# the cotangent times a learning rate. It enters the pairing as a tangent, which
# `MixedPrecision` casts, and which a loss scale, made for cotangents, does not lift. As
# lambda is linear in the cotangent, and the pairing in lambda, both are computed in
# units, powers of two, and the result is multiplied by them at the end: the same
# numbers to the last bit where none of them underflows.
#
# Other programs are left as they are: what a loss casts to float16 itself is not seen,
# unless its problem has a loss scale.


def unit_of(
    names: Iterable[str], point: EvaluationPoint, tree: PyTree
) -> jax.Array | None:
    """Return a power of two of the size of a pytree; None where nothing underflows."""
    short = any(_may_underflow(point.inputs[n].problem) for n in names)
    return find_unit(tree) if short else None


def in_units(unit: jax.Array | None, tree: PyTree) -> PyTree:
    """Return a pytree divided by a unit, if there is one."""
    return tree if unit is None else scale(1 / unit, tree)


def from_units(unit: jax.Array | None, tree: PyTree) -> PyTree:
    """Return a pytree times a unit, if there is one."""
    return tree if unit is None else scale(unit, tree)


def slopes_in_units(
    function: Callable[..., jax.Array],
    units: tuple[jax.Array | None, jax.Array | None],
    lam: PyTree,
    args: tuple[PyTree, PyTree],
) -> tuple[jax.Array, tuple[PyTree, PyTree]]:
    """Return the value and the slopes of a function that is linear in lambda.

    Args:
        function: (lambda, *args) -> a scalar.
        units: What `lam` is still to be multiplied by, and its own size.
        lam: lambda, in the first unit.
        args: The arguments for which it is differentiated.

    Returns:
        The value, and a slope for each of `args`, no longer in units.
    """
    outer, own = units
    lam = in_units(own, lam)
    of_args = lambda *args: function(lam, *args)
    return from_units(
        outer, from_units(own, jax.value_and_grad(of_args, (0, 1))(*args))
    )


def _may_underflow(problem: Problem) -> bool:
    """Return whether numbers of a problem are known to have few bits of exponent."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(problem.params)]
    cast = computes_in(problem.loss_fn)
    known = [*dtypes, *([] if cast is None else [jnp.dtype(cast)])]
    return problem.loss_scale is not None or any(map(_is_short, known))


def _is_short(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).nexp < 8
