"""Detect steps that produce non-finite numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mlox._problem.problem import Problem


def has_nonfinite(
    before: Problem, after: Problem, losses: jax.Array | None
) -> jax.Array:
    """Return whether steps of a problem produced non-finite numbers; a scalar.

    Entries that were not finite before do not count: an optimizer may use an infinity,
    e.g. as the best loss so far. The losses of a problem with a loss scale do not
    count either, as the loss scale handles their overflow.
    """
    found = [jnp.array(False)]
    if losses is not None and after.loss_scale is None:
        found.append(~jnp.isfinite(losses).all())
    mutable = [
        (p.params, p.opt_state, p.model_state, p.memory) for p in (before, after)
    ]
    for old, new in zip(*map(jax.tree.leaves, mutable), strict=True):
        if jnp.issubdtype(new.dtype, jnp.inexact):
            found.append((jnp.isfinite(old) & ~jnp.isfinite(new)).any())
    return jnp.stack(found).any()
