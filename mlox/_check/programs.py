"""The programs of losses, read: custom derivatives, narrow numbers, norms."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr

JAX = str(pathlib.Path(jax.__file__).parent)


class Traits(NamedTuple):
    """What stands in the program of a loss.

    Attributes:
        custom: A derivative of the user's own, by `jax.custom_vjp` or `jax.custom_jvp`.
        narrow: Numbers of 16 bits or fewer.
        norms: A root of an array that has no axis of the given length, as the standard
            deviation over the examples of a batch has.
    """

    custom: bool
    narrow: bool
    norms: bool


def read_program(function: Callable[..., Any], *args: Any, rows: int = 0) -> Traits:
    """Return what stands in the program of a function.

    Example:
        >>> spread = lambda x: jnp.std(x, axis=0)
        >>> read_program(spread, jnp.ones((3, 2)), rows=3)
        Traits(custom=False, narrow=False, norms=True)
    """
    equations = list(_walk(jax.make_jaxpr(function)(*args).jaxpr))
    outputs = [
        (e.primitive.name, v.aval)
        for e in equations
        for v in e.outvars
        if isinstance(v.aval, ShapedArray)
    ]
    return Traits(
        custom=any(_is_custom(e) for e in equations),
        narrow=any(_is_narrow(aval.dtype) for _, aval in outputs),
        norms=any(
            name in ("rsqrt", "sqrt") and aval.ndim > 0 and rows not in aval.shape
            for name, aval in outputs
        ),
    )


def _walk(jaxpr: Jaxpr) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, ClosedJaxpr):
                    yield from _walk(inner.jaxpr)
                elif isinstance(inner, Jaxpr):
                    yield from _walk(inner)


def _is_custom(equation: Any) -> bool:
    """Return whether a rule stands here that is not one of JAX, such as of relu."""
    if not equation.primitive.name.startswith(("custom_vjp", "custom_jvp")):
        return False
    inner = [x for x in equation.params.values() if isinstance(x, ClosedJaxpr)]
    sources = [str(x.jaxpr.debug_info.func_src_info) for x in inner]
    return not any(JAX in source for source in sources)


def _is_narrow(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
