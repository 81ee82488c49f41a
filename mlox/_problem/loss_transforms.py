"""Transformations of losses: micro-batches, lower precision."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mlox._problem.context import Context
from mlox._problem.loss_output import as_dict, check_model_state
from mlox._problem.validation import LOSS
from mlox._utils.convolutions import should_unroll
from mlox._utils.describe import find_non_array
from mlox._utils.fields import COUNT, Kind, check, check_fields, check_function
from mlox._utils.tree import widen
from mlox._utils.types import LossFn, PyTree


@dataclass(frozen=True)
class Accumulated:
    r"""Average a loss over micro-batches, with the memory of one micro-batch.

        C(theta; batch) = 1/n sum_i C_i(theta; i-th part of the batch)

    A loop accumulates the loss, its gradients, Hessian-vector products and differences,
    and every method differentiates it. `unroll_steps` still counts optimizer steps.
    Each part has its own key, a mutable state is passed from part to part, and metrics
    are averaged.

    Attributes:
        loss_fn: (params, batch, ctx) -> loss, as for `mlox.Problem.create`.
        steps: The number n of parts. The leading axis of every leaf of the batch must
            be a multiple of it.

    Raises:
        ValueError: If it is not, or if the loss returns a mutable state that differs in
            structure, shapes or dtypes from the one that it got; while tracing.

    Example:
        >>> import jax.numpy as jnp, mlox, optax
        >>> def loss_fn(params, batch, ctx):
        ...     return jnp.mean((params - batch) ** 2)
        >>> problem = mlox.Problem.create(
        ...     name="fit", params=jnp.zeros(()), tx=optax.sgd(0.5),
        ...     loss_fn=mlox.Accumulated(loss_fn, 4))
        >>> engine = mlox.Engine([problem])
        >>> state, _ = engine.step(engine.init(), {"fit": jnp.ones((1, 8))})
        >>> print(state["fit"].params)
        1.0
    """

    loss_fn: LossFn
    steps: int

    def __post_init__(self) -> None:
        check_function("Accumulated: loss_fn", self.loss_fn, LOSS)
        check_fields(self, steps=COUNT)

    def __call__(self, params: PyTree, batch: PyTree, ctx: Context) -> dict[str, Any]:
        """Return the mean loss and the mean metrics."""
        parts = jax.tree.map(lambda x: self._split(x, ctx.name), batch)

        def add_part(model_state: PyTree, inputs: Any) -> tuple[PyTree, Any]:
            i, part = inputs
            rng = None if ctx.rng is None else jax.random.fold_in(ctx.rng, i)
            part_ctx = dataclasses.replace(ctx, rng=rng, model_state=model_state)
            returned = as_dict(self.loss_fn(params, part, part_ctx))
            if "model_state" in returned:
                new_state = returned.pop("model_state")
                model_state = check_model_state(ctx.name, new_state, model_state)
            return model_state, returned

        inputs = jnp.arange(self.steps), parts
        first = jax.tree.map(lambda x: x[0], inputs)
        unroll = should_unroll(add_part, ctx.model_state, first)
        model_state, stacked = jax.lax.scan(
            # Without the checkpoint the loop keeps the activations of all parts.
            jax.checkpoint(add_part, prevent_cse=unroll),
            ctx.model_state,
            inputs,
            unroll=unroll,
        )
        means = jax.tree.map(lambda x: jnp.mean(x, axis=0), stacked)
        return means if model_state is None else {**means, "model_state": model_state}

    def _split(self, leaf: Any, name: str) -> jax.Array:
        """Return a leaf of a batch with a leading axis of parts."""
        shape = jnp.shape(leaf)
        if not shape or shape[0] % self.steps:
            raise ValueError(
                f"loss of {name!r}: Accumulated(steps={self.steps}) got a batch with a "
                f"leaf of shape {list(shape)}; expected a leading axis that "
                f"{self.steps} divides, the examples of all micro-batches."
            )
        return jnp.reshape(leaf, (self.steps, shape[0] // self.steps, *shape[1:]))


def _is_floating(dtype: Any) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


FLOATING = Kind("a floating dtype, e.g. jnp.bfloat16", _is_floating, TypeError)


@dataclass(frozen=True)
class MixedPrecision:
    """Evaluate a loss in lower precision; the parameters keep their dtype.

    Floating parameters, those of the problem and of its neighbours, and the batch are
    cast. The loss, the metrics and all derivatives are in float32 or wider. Every
    method evaluates the cast loss, also in Hessian-vector products and differences. For
    float16 also pass a `loss_scale` to `Problem.create`, or small gradients underflow.

    Attributes:
        loss_fn: (params, batch, ctx) -> loss, as for `mlox.Problem.create`.
        dtype: The dtype of the computation, e.g. `jnp.bfloat16`.

    References:
        Micikevicius et al., Mixed Precision Training, ICLR 2018.

    Example:
        >>> import jax.numpy as jnp, mlox
        >>> def loss_fn(params, batch, ctx):
        ...     return (params * batch).sum()
        >>> loss = mlox.MixedPrecision(loss_fn, jnp.bfloat16)
        >>> ctx = mlox.Context("fit", {}, None, 0, None)
        >>> print(loss(jnp.ones(2), jnp.float32(1.001), ctx)["loss"])
        2.0
    """

    loss_fn: LossFn
    dtype: Any = jnp.bfloat16

    def __post_init__(self) -> None:
        check_function("MixedPrecision: loss_fn", self.loss_fn, LOSS)
        check("MixedPrecision: dtype", self.dtype, FLOATING)

    def __call__(self, params: PyTree, batch: PyTree, ctx: Context) -> dict[str, Any]:
        """Return the loss and the metrics."""
        neighbours = {
            n: dataclasses.replace(other, params=self._cast(other.params))
            for n, other in ctx.neighbours.items()
        }
        low_ctx = dataclasses.replace(ctx, neighbours=neighbours)
        returned = as_dict(self.loss_fn(self._cast(params), self._cast(batch), low_ctx))
        if "model_state" not in returned:
            return jax.tree.map(_widen, returned)
        new, old = returned.pop("model_state"), ctx.model_state
        # `split_loss` raises if the structures differ.
        if jax.tree.structure(new) == jax.tree.structure(old):
            new = jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), new, old)
        return {**jax.tree.map(_widen, returned), "model_state": new}

    def _cast(self, tree: PyTree) -> PyTree:
        """Return a pytree with its floating leaves in `dtype`."""

        def cast(leaf: Any) -> Any:
            floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
            return jnp.asarray(leaf, self.dtype) if floating else leaf

        return jax.tree.map(cast, tree)


def in_full_precision(loss_fn: Any) -> Any:
    """Return a loss without its casts to lower precision.

    Example:
        >>> half = Accumulated(MixedPrecision(max), 2)
        >>> in_full_precision(half)
        Accumulated(loss_fn=<built-in function max>, steps=2)
    """
    if isinstance(loss_fn, MixedPrecision):
        return in_full_precision(loss_fn.loss_fn)
    if isinstance(loss_fn, Accumulated):
        inner = in_full_precision(loss_fn.loss_fn)
        return dataclasses.replace(loss_fn, loss_fn=inner)
    return loss_fn


def computes_in(loss_fn: Any) -> Any | None:
    """Return the dtype in which `MixedPrecision` computes a loss; None without one.

    Example:
        >>> computes_in(Accumulated(MixedPrecision(max, jnp.float16), 2)).__name__
        'float16'
    """
    if isinstance(loss_fn, MixedPrecision):
        return loss_fn.dtype
    return computes_in(loss_fn.loss_fn) if isinstance(loss_fn, Accumulated) else None


def widen_tree(tree: PyTree) -> PyTree:
    """Return a pytree with its floating leaves in float32 or wider."""
    return jax.tree.map(_widen, tree)


def _widen(leaf: Any) -> Any:
    """Return a floating leaf in float32 or wider, and any other leaf as it is."""
    if find_non_array(leaf):  # `split_loss` raises
        return leaf
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return widen(leaf) if floating else leaf
