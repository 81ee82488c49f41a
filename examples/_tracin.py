"""Products of gradients of single examples, along a training (TracIn)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from _data import Pair


@functools.partial(jax.jit, static_argnums=0)
def products(
    losses: Callable[[Any, Any], jax.Array], path: Any, rows: Pair, queries: Pair
) -> jax.Array:
    """Return minus the products of the gradients, [step, queries, rows].

    The gradient of a query is that of the mean loss of its images: queries are
    [queries, images, ...].
    """

    def products_at(w: Any) -> jax.Array:
        mean = jax.vmap(lambda w, query: losses(w, query).mean(), (None, 0))
        slopes = jax.jacrev(mean)(w, queries)

        def along(slope: Any) -> jax.Array:  # one pass, not a gradient for each row
            return jax.jvp(lambda w: losses(w, rows), (w,), (slope,))[1]

        return -jax.vmap(along)(slopes)

    return jax.lax.map(products_at, path)
