"""Loss scaling: gradients in half precision that neither underflow nor overflow."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from mlox._utils.types import PyTree


def scaled(tree: PyTree, scale: Any) -> PyTree:
    """Return the same values, with an adjoint that multiplies by a scale.

    With f'(x) = scaled(f(scaled(x, 1 / s)), s) the gradient of f is unchanged, but what
    reverse mode computes inside of f is s times as large.

    Args:
        tree: A pytree of floating arrays.
        scale: A scalar, a constant.

    Returns:
        A pytree like `tree`.

    Example:
        >>> gradient = jax.grad(lambda x: scaled(x * x, 1024.0))(3.0)
        >>> print(gradient)
        6144.0
    """
    scale = jax.lax.stop_gradient(jnp.asarray(scale, jnp.float32))
    return jax.tree.map(lambda x: _bind(jnp.asarray(x), scale, multiply=False), tree)


# A primitive of its own: a `custom_vjp` rule would forbid forward mode, in which
# Hessian-vector products are taken, and `linear_call` has no rule for vmap. It is the
# identity or the product with the scale, each of which is the transpose of the other:
# so a derivative of a derivative enters and leaves f at its own scale, too.
_scaled = Primitive("scaled")


@_scaled.def_abstract_eval
def _shape(x: Any, scale: Any, *, multiply: bool) -> Any:
    del scale, multiply
    return x


def _bind(x: Any, scale: Any, *, multiply: bool) -> Any:
    return _scaled.bind(x, scale, multiply=multiply)


def _apply(x: Any, scale: Any, *, multiply: bool) -> Any:
    spread = scale.reshape(scale.shape + (1,) * (x.ndim - scale.ndim))
    return (x * spread).astype(x.dtype) if multiply else x


def _jvp(primals: Any, tangents: Any, *, multiply: bool) -> tuple[Any, Any]:
    (x, scale), dot = primals, tangents[0]
    same = _bind(x, scale, multiply=multiply)
    zero = isinstance(dot, ad.Zero)
    return same, dot if zero else _bind(dot, scale, multiply=multiply)


def _transpose(
    cotangent: Any, x: Any, scale: Any, *, multiply: bool
) -> tuple[Any, None]:
    del x
    if isinstance(cotangent, ad.Zero):
        return cotangent, None
    return _bind(cotangent, scale, multiply=not multiply), None


def _batch(args: Any, dims: Any, *, multiply: bool) -> tuple[Any, int]:
    # The scale has the leading axes of x over which it was mapped.
    (x, scale), (x_dim, scale_dim) = args, dims
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    x = batching.bdim_at_front(x, x_dim, size)
    if scale_dim is not None or scale.ndim:
        scale = batching.bdim_at_front(scale, scale_dim, size)
    return _bind(x, scale, multiply=multiply), 0


_scaled.def_impl(_apply)
ad.primitive_jvps[_scaled] = _jvp
ad.primitive_transposes[_scaled] = _transpose
batching.primitive_batchers[_scaled] = _batch
mlir.register_lowering(_scaled, mlir.lower_fun(_apply, multiple_results=False))
