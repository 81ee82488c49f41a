"""The loss of an upper at copies of its lower: a surrogate with an estimated slope."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mlox._problem.context import Context
from mlox._problem.loss_output import split_loss
from mlox._utils.chunks import vmap_in_chunks
from mlox._utils.tree import STANDARD_PROMOTION, partition, vdot
from mlox._utils.types import LossFn, Mask, PyTree
from mlox.rewritings._copies import Copy, perturb

# With the losses F_i+ and F_i- of the copies of a pair, at x + s_i and x - s_i,
#
#     g = 1 / (2 sigma^2 N) sum_i w_i (F_i+ - F_i-),      w_i the weight of the pair,
#
# is the slope of the surrogate mean(F) + <g, x - x'>, x' = x a constant. Everything F
# reads is a constant, too: it is not differentiated.

# A stream of keys of the upper's steps, for the batches that it samples.
SAMPLE = 1


@dataclass(frozen=True)
class SmoothedLoss:
    """The mean loss over copies, whose slope is estimated from their differences.

    Attributes:
        loss_fn: The loss of the upper.
        sample: Makes its batch, or None.
        trainable: Its mask.
        lower: The lower.
        pairs: Half the number of its copies.
        sigma: The standard deviation of perturbations.
    """

    loss_fn: LossFn
    sample: Callable[..., Any] | None
    trainable: Mask | None
    lower: str
    pairs: int
    sigma: float

    def __call__(self, params: PyTree, batch: PyTree, ctx: Context) -> dict[str, Any]:
        """Return the surrogate, and the means of the metrics over the copies."""
        found = self._evaluate(params, batch, ctx)
        copy: Copy = jax.lax.stop_gradient(ctx[self.lower].model_state)
        with STANDARD_PROMOTION():
            slope = self._estimate(found["loss"], copy.noise.weight)
            metrics = {key: jnp.mean(x, axis=0) for key, x in found.items()}
            x = trained_part(self.trainable, params)
            step = jax.tree.map(lambda x: x - jax.lax.stop_gradient(x), x)
            surrogate = metrics["loss"] + vdot(slope, step)
            return {**metrics, "loss": surrogate.astype(metrics["loss"].dtype)}

    def _evaluate(self, params: PyTree, batch: PyTree, ctx: Context) -> dict[str, Any]:
        """Return what the loss of the upper returns at each copy, as a dict."""
        seen = jax.lax.stop_gradient(ctx[self.lower].params)
        lower = dataclasses.replace(ctx[self.lower], tasks=None, tasks_at_once=None)
        copies: Copy = jax.lax.stop_gradient(ctx[self.lower].model_state)

        def of_copy(copy: Copy, answer: PyTree) -> dict[str, Any]:
            x = perturb(params, copy.noise)
            one = dataclasses.replace(lower, params=answer, model_state=copy.own)
            neighbours = {**ctx.neighbours, self.lower: one}
            seen = dataclasses.replace(ctx, neighbours=neighbours)
            given = batch
            if self.sample is not None:
                key = None if ctx.rng is None else jax.random.fold_in(ctx.rng, SAMPLE)
                given = self.sample(x, dataclasses.replace(seen, rng=key))
            return _read(ctx.name, self.loss_fn(x, given, seen))

        at_once = ctx[self.lower].tasks_at_once
        return vmap_in_chunks(of_copy, 2 * self.pairs, at_once)(copies, seen)

    def _estimate(self, losses: jax.Array, weight: PyTree) -> PyTree:
        """Return the slope, from the losses of the copies and their weights."""
        up, down = losses[: self.pairs], losses[self.pairs :]
        differences = (up - down) / (2 * self.sigma**2 * self.pairs)

        def of_leaf(weight: jax.Array) -> jax.Array:
            return jnp.tensordot(differences, weight[: self.pairs], axes=1)

        return jax.tree.map(of_leaf, weight)


def trained_part(trainable: Mask | None, params: PyTree) -> PyTree:
    """Return the parameters that are trained, None for the others."""
    return params if trainable is None else partition(trainable(params), params)


def _read(name: str, returned: Any) -> dict[str, Any]:
    """Return the output of a loss as a dict of arrays with a scalar as its loss."""
    loss, metrics, _ = split_loss(name, returned, None)
    del loss
    return metrics
