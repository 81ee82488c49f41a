"""A problem with tasks as one problem, whose loss may read all of them at once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

from mlox._problem.context import Context
from mlox._problem.problem import Problem
from mlox._problem.transformation import build_transformation
from mlox._utils.types import Mask, PyTree
from mlox.rewritings._losses import Loss

# A problem with tasks has a cost that is a sum over them, so that the loss of a task
# sees its own parameters alone. The cost of an upper that they share is no such sum: it
# needs all answers at once. So the tasks are joined to one problem, with the same
# arrays, and an optimizer that updates each task on its own.


def join_tasks(problem: Problem, loss: Loss) -> Problem:
    """Return a problem without tasks that holds those of another one, stacked.

    Its loss remains to be replaced by one of the stacked parameters.
    """
    if problem.tasks is None:
        return problem
    reset, project, hyperparams = problem.reset, problem.project, problem.hyperparams
    return dataclasses.replace(
        problem,
        tx=_join_optimizers(problem.tx, problem.trainable, problem.tasks),
        tasks=None,
        tasks_at_once=None,
        trainable=None,
        reset=None if reset is None else _Reset(loss, reset),
        project=None if project is None else _Mapped(project),
        hyperparams=None if hyperparams is None else _Hyperparams(loss, hyperparams),
    )


# Cached, so that a new problem with equal arguments does not compile again.
@functools.lru_cache(maxsize=64)
def _join_optimizers(
    tx: optax.GradientTransformation, trainable: Mask | None, tasks: int
) -> optax.GradientTransformation:
    """Return a transformation of stacked parameters that updates each task."""
    each = build_transformation(_refuse_functions(tx), trainable, tasks)
    each = optax.with_extra_args_support(each)

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        # The functions are those of the joined cost, of all tasks at once.
        for name in ("grad", "value_fn", "grad_fn"):
            extra.pop(name, None)
        return each.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(each.init, update)


def _refuse_functions(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Return a transformation that raises where it evaluates the cost of a task."""
    if not isinstance(tx, optax.GradientTransformationExtraArgs):
        return tx

    # With the parameters of those that they stand for, which optax reads.
    def value_fn(params: PyTree, grad_fn: Any = None) -> Any:
        del grad_fn
        return refuse(params)

    def refuse(params: PyTree) -> Any:
        del params
        raise ValueError(
            "the optimizer evaluates the cost of one task at other parameters, but "
            "the tasks are joined, since the loss of their upper reads all of them. "
            "Take an optimizer that needs gradients alone, such as optax.adam."
        )

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        functions = {"value_fn": value_fn, "grad_fn": refuse}
        return tx.update(updates, state, params, **{**extra, **functions})

    return optax.GradientTransformationExtraArgs(tx.init, update)


@dataclass(frozen=True)
class _Mapped:
    """A function of the parameters of one task, for all of them."""

    function: Callable[..., Any]

    def __call__(self, params: PyTree) -> PyTree:
        return jax.vmap(self.function)(params)


@dataclass(frozen=True)
class _Reset:
    loss: Loss
    reset: Callable[..., Any]

    def __call__(self, params: PyTree, ctx: Context) -> PyTree:
        def start(params: PyTree, batch: PyTree, ctx: Context) -> PyTree:
            del batch
            return self.reset(params, ctx)

        at = self.loss.stacked(self.loss.at(params, ctx))
        return self.loss.call(start, at, None, ctx, rng=ctx.rng, stand_ins={})


@dataclass(frozen=True)
class _Hyperparams:
    loss: Loss
    hyperparams: Callable[..., Any]

    def __call__(self, ctx: Context) -> Any:
        def choose(params: PyTree, batch: PyTree, ctx: Context) -> Any:
            del params, batch
            return self.hyperparams(ctx)

        at = self.loss.stacked(self.loss.at(None, ctx))
        return self.loss.call(choose, at, None, ctx, rng=ctx.rng, stand_ins={})
