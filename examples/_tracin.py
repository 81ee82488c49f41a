"""Products of gradients of single examples, along a training (TracIn)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from _data import Pair


@functools.partial(jax.jit, static_argnums=0)
def products(
    losses: Callable[[Any, Any], jax.Array], path: Any, rows: Pair, images: Pair
) -> jax.Array:
    """Return minus the products of the gradients, [step, images, rows]."""

    def gradients(w: Any, rows: Pair) -> jax.Array:
        slope = jax.grad(lambda w, x, y: losses(w, (x[None], y[None]))[0])
        tree = jax.vmap(slope, (None, 0, 0))(w, *rows)
        flat = [x.reshape(len(x), -1) for x in jax.tree.leaves(tree)]
        return jnp.concatenate(flat, axis=1)

    return jax.lax.map(lambda w: -gradients(w, images) @ gradients(w, rows).T, path)
