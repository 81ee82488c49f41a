"""Vector arithmetic on pytrees that `optax.tree` lacks, safe in low precision."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from mlox._utils.types import Tree

STANDARD_PROMOTION = functools.partial(jax.numpy_dtype_promotion, "standard")
"""The leaves of a tree may differ in dtype, also where a user asks for "strict"."""


def vdot(x: Tree, y: Tree) -> jax.Array:
    """Return `<x, y> = sum_i x_i y_i` over all leaves.

    Example:
        >>> x = {"w": jnp.ones(1000, jnp.bfloat16)}
        >>> print(vdot(x, x))
        1000.0
    """
    with STANDARD_PROMOTION():
        found = optax.tree.vdot(jax.tree.map(widen, x), jax.tree.map(widen, y))
    return jnp.asarray(found)


def norm(x: Tree) -> jax.Array:
    """Return `||x||` over all leaves, also where squares overflow or underflow.

    Example:
        >>> print(norm({"w": jnp.array([3e-30, 4e-30], jnp.float32)}))
        5e-30
    """
    leaves = [widen(leaf) for leaf in jax.tree.leaves(x) if jnp.size(leaf)]
    if not leaves:
        return jnp.zeros(())
    with STANDARD_PROMOTION():
        largest = functools.reduce(jnp.maximum, [jnp.abs(x).max() for x in leaves])
        size = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
        return size * optax.tree.norm([leaf / size for leaf in leaves])


def ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return `x / y`, and 1 for `0 / 0`: how many times as large x is.

    Example:
        >>> print(ratio(0.0, 0.0), ratio(3.0, 2.0))
        1.0 1.5
    """
    with STANDARD_PROMOTION():
        nothing = (x == 0) & (y == 0)
        return jnp.where(nothing, 1.0, x / jnp.where(nothing, 1.0, y))


def cosine(x: Tree, y: Tree) -> jax.Array:
    """Return `<x, y> / (||x|| ||y||)`, 0 if one of the two is zero, 1 if both are.

    Example:
        >>> print(cosine((jnp.ones(1),), (-3 * jnp.ones(1),)))
        -1.0
    """
    lengths = norm(x), norm(y)
    unit = [
        scale(1 / jnp.where(length > 0, length, 1), tree)
        for tree, length in zip((x, y), lengths, strict=True)
    ]
    both_zero = (lengths[0] == 0) & (lengths[1] == 0)
    return jnp.where(both_zero, 1.0, vdot(*unit))


def add_scaled(x: Tree, scale: jax.Array | float, y: Tree) -> Tree:
    """Return `x + scale * y`, each leaf in the dtype of the leaf of `x`.

    Unlike `optax.tree.add_scale`, a float32 `scale` leaves a bfloat16 leaf in
    bfloat16, which the carry of a loop needs.

    Example:
        >>> print(add_scaled((jnp.ones(2),), 2.0, (jnp.ones(2),))[0])
        [3. 3.]
    """
    with STANDARD_PROMOTION():
        return jax.tree.map(lambda a, b: (a + scale * b).astype(a.dtype), x, y)


def scale(factor: jax.Array | float, x: Tree) -> Tree:
    """Return `factor * x`, each leaf in its own dtype.

    Example:
        >>> print(scale(2.0, (jnp.ones(2),))[0])
        [2. 2.]
    """
    with STANDARD_PROMOTION():
        return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), x)


def ravel(tree: Tree) -> tuple[jax.Array, Callable[[jax.Array], Tree]]:
    """Return a pytree as one vector in the widest dtype, and the inverse function.

    Example:
        >>> vector, unravel = ravel({"w": jnp.ones((2, 1))})
        >>> print(vector, unravel(vector)["w"].shape)
        [1. 1.] (2, 1)
    """
    with STANDARD_PROMOTION():
        return ravel_pytree(tree)


def epsilon(tree: Tree) -> float:
    """Return the machine precision of the coarsest leaf.

    Example:
        >>> epsilon((jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.float32)))
        0.0078125
    """
    leaves = jax.tree.leaves(tree)
    return max((float(jnp.finfo(leaf.dtype).eps) for leaf in leaves), default=0.0)


def largest(tree: Tree) -> jax.Array:
    """Return the largest absolute value in a pytree, 0 if there is none.

    Example:
        >>> print(largest((jnp.array([1.0, -3.0]), jnp.zeros(1))))
        3.0
    """
    leaves = [widen(leaf) for leaf in jax.tree.leaves(tree) if jnp.size(leaf)]
    sizes = [jnp.max(jnp.abs(leaf)) for leaf in leaves]
    with STANDARD_PROMOTION():
        return functools.reduce(jnp.maximum, sizes, jnp.float32(0))


def find_unit(tree: Tree) -> jax.Array:
    """Return a power of two of the size of the largest number in a pytree.

    In such units the squares of a vector neither underflow nor overflow, which in
    float32 they do below 1e-19 and above 1e19, and to divide by the unit is exact. It
    is 1 for zeros, and for numbers that are not finite.

    Example:
        >>> print(find_unit((jnp.array([3e-30, -5e-30]), jnp.zeros(1))) * 2.0**97)
        1.0
        >>> print(find_unit(jnp.zeros(2)))
        1.0
    """
    size = jax.lax.stop_gradient(largest(tree))
    # The unit and its inverse are normal numbers: the hardware takes others for zero.
    precision = jnp.finfo(size.dtype)
    least = 4 * float(precision.tiny)
    usable = (size > 0) & jnp.isfinite(size)
    clipped = jnp.where(usable, jnp.clip(size, least, 1 / least), 1)
    return jax.lax.reduce_precision(clipped, precision.nexp, 0)


def avoid_zero(leaf: jax.Array) -> jax.Array:
    """Return an array with tiny numbers in place of its zeros.

    Their squares are not zero, so the root of a mean of squares has a derivative.

    Example:
        >>> x = avoid_zero(jnp.array([0.0, 3.0]))
        >>> print(x < 1e-12, x**2 > 0)
        [ True False] [ True  True]
    """
    small = float(jnp.finfo(leaf.dtype).tiny) ** 0.4
    return jnp.where(leaf == 0, jnp.asarray(small, leaf.dtype), leaf)


def shard_like(tree: Tree, like: Tree, never: jax.Array) -> Tree:
    """Return a pytree that XLA places on a mesh like another one.

    Otherwise the vectors of a solver would be replicated where the parameters are
    split: a gradient is a sum over examples, whose result XLA does not split. `never`
    is a False that the compiler must not be able to infer.

    Example:
        >>> print(shard_like((jnp.ones(2),), (jnp.zeros(2),), jnp.array(False))[0])
        [1. 1.]
    """
    # JAX 0.12 has removed `jax.experimental.shard_alike`. On a mesh with automatic axes
    # the sharding of a traced array is unknown, so it cannot be used as a constraint;
    # but XLA places both branches of a `where` alike. The `where` may need a temporary
    # of the size of the parameters, so it is used only if the type of a traced array
    # (JAX 0.10 and later) has a mesh.
    return jax.tree.map(
        lambda x, y: jnp.where(never, y, x) if jax.typeof(y).sharding.mesh.size else x,
        tree,
        like,
    )


def link_leaves(tree: Tree) -> Tree:
    """Return the same values, every leaf formally linear in every other leaf.

    Adds `0 * sum(all entries)` to each leaf. The transpose rule of
    `jax.lax.custom_linear_solve` requires that either all or none of the leaves of a
    right-hand side are linear in the transposed arguments.

    Example:
        >>> def f(x):
        ...     return link_leaves((x, jnp.zeros(3)))[1]
        >>> print(jax.linear_transpose(f, 0.0)(jnp.ones(3))[0])
        0.0
    """
    leaves = jax.tree.leaves(tree)
    if len(leaves) < 2:
        return tree
    with STANDARD_PROMOTION():
        nothing = 0 * functools.reduce(operator.add, map(jnp.sum, leaves))
    return jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), tree)


def combine(part: Tree, whole: Tree) -> Tree:
    """Return `whole` with its leaves replaced by those of `part`.

    Example:
        >>> combine({"head": 1.0, "body": None}, {"head": 0.0, "body": 2.0})
        {'body': 2.0, 'head': 1.0}
    """
    return jax.tree.map(
        lambda new, old: old if new is None else new,
        part,
        whole,
        is_leaf=lambda leaf: leaf is None,
    )


def partition(mask: Tree, tree: Tree) -> Tree:
    """Return `tree` with None for the leaves where `mask` is False.

    Example:
        >>> partition({"head": True, "body": False}, {"head": 1.0, "body": [2.0, 3.0]})
        {'body': [None, None], 'head': 1.0}
    """

    def part(kept: bool, subtree: Tree) -> Tree:
        return subtree if kept else jax.tree.map(lambda _: None, subtree)

    return jax.tree.map(part, mask, tree)


def strip_weak_type(value: Any) -> jax.Array:
    """Return an array without a weak type, so that the carry of a loop keeps its dtype.

    Example:
        >>> strip_weak_type(1.0).weak_type
        False
    """
    array = jnp.asarray(value)
    number = jnp.issubdtype(array.dtype, np.number)  # not a PRNG key
    return array.astype(array.dtype) if number and array.weak_type else array


def widen(leaf: Any) -> jax.Array:
    """Return a floating array in float32 if its dtype is narrower.

    Example:
        >>> widen(jnp.ones(2, jnp.bfloat16)).dtype
        dtype('float32')
    """
    array = jnp.asarray(leaf)
    narrow = jnp.finfo(array.dtype).bits < 32
    return array.astype(jnp.float32) if narrow else array
