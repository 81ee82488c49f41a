"""Samples: a lower's cost over the batches and keys of its window, weighted."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlox._hypergradient.point import StepInputs
from mlox._problem.context import Context
from mlox._problem.loss_output import as_dict
from mlox._problem.problem import Problem
from mlox._utils.types import LossFn, PyTree

# One mini-batch says little about a lower: its Hessian, its residual and the answer
# share the noise. So references evaluate the weighted sum
#
#     C(theta) = sum over s of w_s C(theta; batch_s, key_s)
#
# over the steps s of the window. The last step alone is the point of the program
# itself, each other step alone shows the noise, and equal weights are one large batch.

MOST = 8


class Samples(NamedTuple):
    """The inputs of the last steps of a lower, stacked along their first axis.

    Attributes:
        batch: The batches.
        rng: The PRNG keys, or None.
        step: The counts.
        inner_step: The counts within the inner loop.
        weight: The weights.
    """

    batch: PyTree
    rng: jax.Array | None
    step: jax.Array
    inner_step: jax.Array
    weight: jax.Array


@dataclass(frozen=True)
class WeightedLoss:
    """The weighted sum of a loss over samples; the mutable state does not change."""

    loss_fn: LossFn
    unroll: bool

    def __call__(self, params: PyTree, batch: Samples, ctx: Context) -> jax.Array:
        """Return the weighted sum."""

        def add(total: jax.Array, sample: Samples) -> tuple[jax.Array, None]:
            one = dataclasses.replace(
                ctx,
                rng=sample.rng,
                step=sample.step,
                inner_step=sample.inner_step,
            )
            loss = as_dict(self.loss_fn(params, sample.batch, one))["loss"]
            return total + sample.weight * jnp.asarray(loss, total.dtype), None

        if len(batch.weight) == 1:
            only = jax.tree.map(lambda x: x[0], batch)
            return add(jnp.zeros_like(only.weight), only)[0]
        zero = jnp.zeros((), batch.weight.dtype)
        return jax.lax.scan(add, zero, batch, unroll=self.unroll)[0]


def choose_samples(steps: int, batch: PyTree, rng: jax.Array | None) -> list[int]:
    """Return the steps of a lower's window that references evaluate, the last one last.

    All of them, but at most 8; only the last one if all are the same.
    """
    if steps == 1:
        return [0]
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]
    if rng is None and all((leaf == leaf[-1:]).all() for leaf in leaves):
        return [steps - 1]
    return sorted({round(i) for i in np.linspace(0, steps - 1, min(steps, MOST))})


def stack_samples(
    inputs: StepInputs,
    batch: PyTree,
    chosen: list[int],
    steps: int,
    loop: int,
    weight: jax.Array,
) -> Samples:
    """Return the samples at the end of a window; inner loops have `loop` steps."""
    problem: Problem = inputs.problem
    index = jnp.asarray(chosen)
    if steps == 1:
        batch = jax.tree.map(lambda x: jnp.asarray(x)[None], batch)
    before_last = index.astype(problem.step.dtype) - (steps - 1)
    count = inputs.problem.step - 1 + before_last
    inner = (inputs.inner_step + before_last) % loop
    key, rng = problem.rng, None
    if key is not None:
        rng = jax.vmap(functools.partial(jax.random.fold_in, key))(count)
    samples = Samples(
        jax.tree.map(lambda x: x[index], batch), rng, count, inner, weight
    )
    if problem.tasks is None:
        return samples
    return _stack_tasks(samples, problem.tasks)


def _stack_tasks(samples: Samples, tasks: int) -> Samples:
    """Return samples with a first axis of tasks, and a second one of steps."""
    rng = samples.rng
    if rng is not None:
        rng = jax.vmap(lambda key: jax.random.split(key, tasks), out_axes=1)(rng)

    def repeat(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (tasks, *x.shape))

    return Samples(
        batch=jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), samples.batch),
        rng=rng,
        step=repeat(samples.step),
        inner_step=repeat(samples.inner_step),
        weight=repeat(samples.weight),
    )
