"""The exact pairing of a multiplier with a residual."""

from collections.abc import Callable
from typing import Any

import jax


def exact_pairing(
    cost: Callable[[Any], jax.Array], point: Any, multiplier: Any
) -> jax.Array:
    """Return <multiplier, d cost/dy>: the derivative of the cost along the multiplier.

    Forward mode, so that its own gradient is a reverse-over-forward product.
    """
    return jax.jvp(cost, (point,), (multiplier,))[1]
