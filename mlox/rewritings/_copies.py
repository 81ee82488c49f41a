"""Copies of a lower, each of which sees an upper with a perturbation of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlox._problem.context import Context
from mlox._problem.loss_output import as_dict
from mlox._problem.problem import Problem
from mlox._problem.task_chunk import number_tasks
from mlox._utils.fields import check_like
from mlox._utils.tree import combine
from mlox._utils.types import LossFn, PyTree
from mlox.rewritings._estimators import Estimator, Noise, choose

Draw = Callable[..., jax.Array]

# The copies i and N + i are a pair: they see x + s_i and x - s_i. Any two differ in
# nothing else: they have the same batches, and the same keys.

# A stream of keys of the lower beside those of its steps, whose counts are below 2^31.
STREAM = 2**32 - 16


class Copy(NamedTuple):
    """The mutable state of a copy.

    Attributes:
        own: That of the lower itself.
        noise: The perturbations.
        windows: The number of windows so far, int32.
    """

    own: PyTree
    noise: Noise
    windows: jax.Array


def see_perturbed(ctx: Context, upper: str) -> Context:
    """Return the context of a copy as the functions of the lower see it."""
    copy: Copy = ctx.model_state
    seen = ctx[upper]
    moved = dataclasses.replace(seen, params=perturb(seen.params, copy.noise))
    neighbours = {**ctx.neighbours, upper: moved}
    return dataclasses.replace(
        ctx, neighbours=neighbours, model_state=copy.own, task_index=None
    )


def perturb(params: PyTree, noise: Noise) -> PyTree:
    """Return parameters with the present perturbation added, as constants."""
    params = jax.lax.stop_gradient(params)
    moved = jax.tree.map(
        lambda s, x: None if s is None else x + s,
        noise.now,
        params,
        is_leaf=lambda leaf: leaf is None,
    )
    return combine(moved, params)


@dataclass(frozen=True)
class CopyLoss:
    """The loss of a copy."""

    loss_fn: LossFn
    upper: str

    def __call__(self, params: PyTree, batch: PyTree, ctx: Context) -> dict[str, Any]:
        """Return the loss at the perturbed upper, and the state of the copy."""
        copy: Copy = ctx.model_state
        parts = as_dict(self.loss_fn(params, batch, see_perturbed(ctx, self.upper)))
        own = parts.get("model_state", copy.own)
        return {**parts, "model_state": copy._replace(own=own)}


@dataclass(frozen=True)
class CopySample:
    """The batches that a copy samples."""

    sample: Callable[..., Any]
    upper: str

    def __call__(self, params: PyTree, ctx: Context) -> PyTree:
        """Return a batch at the perturbed upper."""
        return self.sample(params, see_perturbed(ctx, self.upper))


@dataclass(frozen=True)
class CopyHyperparams:
    """The hyperparameters of the optimizer of a copy."""

    hyperparams: Callable[..., Any]
    upper: str

    def __call__(self, ctx: Context) -> Any:
        """Return what the perturbed upper makes of them."""
        return self.hyperparams(see_perturbed(ctx, self.upper))


@dataclass(frozen=True)
class Windows:
    """The start of each window: new perturbations, and new episodes where one ended.

    It is the `reset` of the copies.

    Attributes:
        reset: That of the lower, or None.
        upper: Its upper.
        estimator: How perturbations live.
        pairs: Half the number of the copies.
        sigma: The standard deviation of perturbations.
        draw: (key, shape, dtype) -> perturbations of variance one.
    """

    reset: Callable[..., Any] | None
    upper: str
    estimator: Estimator
    pairs: int
    sigma: float
    draw: Draw

    def __call__(self, params: PyTree, ctx: Context, /) -> PyTree:
        """Return the parameters with which an episode begins."""
        if self.reset is None:
            return params
        return self.reset(params, see_perturbed(ctx, self.upper))

    def begin(self, problem: Problem, start: Callable[[Problem], Problem]) -> Problem:
        """Return the copies with which a window begins."""
        copy: Copy = problem.model_state
        numbers = number_tasks(problem)
        anew = self._begins(copy.windows, numbers % self.pairs)
        noise = self.estimator.next(copy.noise, self._draw(problem, numbers), anew)
        copy = copy._replace(noise=noise, windows=copy.windows + 1)
        problem = dataclasses.replace(problem, model_state=copy)
        if self.reset is not None and self.estimator.windows == 1:
            return start(problem)
        on = problem if self.estimator.goes_on_alone else _join_pairs(problem)
        if self.reset is None:
            return on
        fresh = start(problem)
        params, opt_state = choose(
            anew, (fresh.params, fresh.opt_state), (on.params, on.opt_state)
        )
        return dataclasses.replace(on, params=params, opt_state=opt_state)

    def _begins(self, windows: jax.Array, pair: jax.Array) -> jax.Array:
        """Return whether an episode begins, for each copy."""
        length = self.estimator.windows
        phase = 0 if self.estimator.in_step else pair * length // self.pairs
        return (windows == 0) | ((windows + phase) % length == 0)

    def _draw(self, problem: Problem, numbers: jax.Array) -> PyTree:
        """Return a perturbation for each copy, opposite ones for the two of a pair."""
        copy: Copy = problem.model_state
        key: Any = jax.random.fold_in(problem.rng, STREAM)  # type: ignore[arg-type]
        leaves, structure = jax.tree.flatten(copy.noise.now)

        def of_copy(window: jax.Array, number: jax.Array) -> list[jax.Array]:
            own = jax.random.fold_in(key, window)
            own = jax.random.fold_in(own, number % self.pairs)
            keys = jax.random.split(own, len(leaves))
            size = jnp.where(number < self.pairs, self.sigma, -self.sigma)
            return [
                self._draw_like(k, x[0]) * size.astype(x.dtype)
                for k, x in zip(keys, leaves, strict=True)
            ]

        return structure.unflatten(jax.vmap(of_copy)(copy.windows, numbers))

    def _draw_like(self, key: jax.Array, leaf: jax.Array) -> jax.Array:
        drawn = self.draw(key, leaf.shape, leaf.dtype)
        check_like(
            "mlox.evolve: draw(key, shape, dtype)",
            drawn,
            leaf,
            "a leaf of the upper",
            "Return an array of that shape and dtype.",
        )
        return drawn


def _join_pairs(problem: Problem) -> Problem:
    """Return the copies with both of each pair where the positive one is."""
    copy: Copy = problem.model_state

    def join(x: jax.Array) -> jax.Array:
        positive = x[: len(x) // 2]
        return jnp.concatenate([positive, positive])

    parts = problem.params, problem.opt_state, copy.own
    params, opt_state, own = jax.tree.map(join, parts)
    return dataclasses.replace(
        problem,
        params=params,
        opt_state=opt_state,
        model_state=copy._replace(own=own),
    )
