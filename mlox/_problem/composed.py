"""Losses in two parts, outputs and a loss of them, for Gauss-Newton products."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mlox._problem.context import Context
from mlox._problem.loss_transforms import Accumulated, MixedPrecision
from mlox._problem.proximal import Proximal
from mlox._utils.fields import check_function
from mlox._utils.types import LossFn, PyTree

# Losses of a loss, which leave its parts as they are.
WRAPPERS = Accumulated | MixedPrecision | Proximal

OUTPUTS = "(params, batch, ctx) -> outputs"
LOSS_OF_OUTPUTS = "(outputs, batch, ctx) -> loss"


@dataclass(frozen=True)
class Composed:
    r"""Compose a loss of its two parts, for `mlox.GaussNewton`.

        C(theta) = l(f(theta, batch, ctx), batch, ctx)

    It is a loss like any other, for every method; its Gauss-Newton matrix is J^T H J
    with J = df/dtheta and H the Hessian of l in the outputs. `mlox.Accumulated`,
    `mlox.MixedPrecision` and `mlox.Proximal` of it are composed, too.

    Attributes:
        outputs: f, (params, batch, ctx) -> outputs: a pytree, such as logits. All that
            depends on the parameters passes through it. For a penalty on the parameters
            return them, too, as in the example: the matrix then holds its exact
            Hessian.
        loss: l, (outputs, batch, ctx) -> a floating scalar, or a dict of arrays with
            one as "loss", as `mlox.Problem.create` takes it.

    Raises:
        TypeError: If a part is no function of three arguments.

    Example:
        >>> import jax.numpy as jnp, mlox
        >>> def outputs(params, batch, ctx):
        ...     return jnp.tanh(batch["x"] @ params), params
        >>> def loss(outputs, batch, ctx):
        ...     found, params = outputs
        ...     return ((found - batch["y"]) ** 2).sum() + 0.1 * (params**2).sum()
        >>> composed = mlox.Composed(outputs, loss)
        >>> ctx = mlox.Context("fit", {}, None, 0, None)
        >>> batch = {"x": jnp.zeros((3, 2)), "y": jnp.ones(3)}
        >>> print(composed(jnp.zeros(2), batch, ctx))
        3.0
    """

    outputs: LossFn
    loss: LossFn

    def __post_init__(self) -> None:
        check_function("Composed: outputs", self.outputs, OUTPUTS)
        check_function("Composed: loss", self.loss, LOSS_OF_OUTPUTS)

    def __call__(self, params: PyTree, batch: PyTree, ctx: Context) -> Any:
        """Return the loss of the outputs."""
        return self.loss(self.outputs(params, batch, ctx), batch, ctx)


def is_composed(loss_fn: Any) -> bool:
    """Return whether a loss gives its parts."""
    if isinstance(loss_fn, WRAPPERS):
        return is_composed(loss_fn.loss_fn)
    return isinstance(loss_fn, Composed)


def linearize_outputs(loss_fn: Any, point: PyTree) -> LossFn:
    """Return a composed loss with its outputs linearized at some parameters.

    At the point it has the value and the slopes of the loss, in whatever it reads, and
    the mixed derivatives d^2/(dtheta dx); its Hessian is the Gauss-Newton matrix.
    """
    if isinstance(loss_fn, WRAPPERS):
        inner = linearize_outputs(loss_fn.loss_fn, point)
        return dataclasses.replace(loss_fn, loss_fn=inner)
    return dataclasses.replace(loss_fn, outputs=_Linearized(loss_fn.outputs, point))


@dataclass(frozen=True)
class _Linearized:
    """f(point) + J (params - point), in the dtypes of the params."""

    outputs: LossFn
    point: PyTree

    def __call__(self, params: PyTree, batch: PyTree, ctx: Context) -> PyTree:
        point = jax.tree.map(
            lambda x, like: jnp.asarray(x, like.dtype), self.point, params
        )
        moved = jax.tree.map(jnp.subtract, params, point)
        of_params = lambda params: self.outputs(params, batch, ctx)
        found, slopes = jax.jvp(of_params, (point,), (moved,))
        return jax.tree.map(_add_if_floating, found, slopes)


def _add_if_floating(found: Any, slope: Any) -> Any:
    """Return the sum; what has no tangent, such as a label, as it is."""
    floating = jnp.issubdtype(jnp.result_type(found), jnp.floating)
    return found + slope if floating else found
