"""Gaussian vectors that depend on the shapes of a pytree alone."""

import collections

import jax

from mlox._utils.types import Tree


def draw_like(key: jax.Array, like: Tree) -> Tree:
    """Return a pytree of standard normal numbers, in the shapes and dtypes of another.

    What a leaf gets depends on its shape, and on how many leaves of that shape are in
    front of it. Neither names nor the order of leaves of different shapes matter, nor
    do values: a solver that starts here stays linear in its right-hand side.

    Example:
        >>> import jax.numpy as jnp
        >>> x = draw_like(jax.random.key(0), (jnp.ones(2), jnp.ones(3)))
        >>> y = draw_like(jax.random.key(0), (jnp.ones(3), jnp.ones(2)))
        >>> bool((x[0] == y[1]).all() & (x[1] == y[0]).all())
        True
    """
    leaves, structure = jax.tree.flatten(like)
    before: collections.Counter[tuple[int, ...]] = collections.Counter()
    drawn: list[jax.Array] = []
    for leaf in leaves:
        mine = key
        for number in (before[leaf.shape], *leaf.shape):
            mine = jax.random.fold_in(mine, number)
        drawn.append(jax.random.normal(mine, leaf.shape, leaf.dtype))
        before[leaf.shape] += 1
    return jax.tree.unflatten(structure, drawn)


def make_key(seed: int) -> jax.Array:
    """Return a key of the same numbers under every setting of JAX."""
    return jax.random.key(seed, impl="threefry2x32")
