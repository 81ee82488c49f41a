"""Comparisons of states, which may hold PRNG keys, and of what optax returns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

# optax mixes integers and floats: by hand it is called as mlox calls it.
STANDARD = jax.numpy_dtype_promotion("standard")


def with_key_data(tree):
    """Return a pytree with the data of its PRNG keys, which NumPy can compare."""

    def convert(leaf):
        is_key = jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(convert, tree)


def assert_close(found, expected):
    """Assert that two pytrees agree in float64, up to the order of sums."""
    trees = map(with_key_data, (found, expected))
    chex.assert_trees_all_close(*trees, rtol=1e-12, atol=1e-14)


def assert_near(found, expected, tolerance):
    """Assert that two pytrees differ by at most a part of the largest entry."""
    found, expected = jax.tree.map(np.asarray, (found, expected))
    chex.assert_trees_all_equal_shapes(found, expected)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    chex.assert_trees_all_close(found, expected, rtol=0, atol=tolerance * scale)
