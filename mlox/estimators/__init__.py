"""Estimators: gradients of smaller variance, as optax transformations.

Each stands first in the chain of a problem's `tx`, and gets `grad_fn` from the engine.

Example:
    >>> import jax.numpy as jnp, mlox, optax
    >>> tx = optax.chain(mlox.estimators.storm(0.1), optax.sgd(0.5))
    >>> fit = mlox.Problem.create(
    ...     name="fit", params=jnp.float32(1.0), tx=tx,
    ...     loss_fn=lambda y, batch, ctx: 0.5 * y**2)
    >>> engine = mlox.Engine([fit])
    >>> state, _ = engine.step(engine.init(), {"fit": None})
    >>> print(state["fit"].params)
    0.5
"""

from mlox.estimators._page import page as page
from mlox.estimators._storm import storm as storm
