"""The programs of losses, read: custom derivatives, narrow numbers, norms."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray

from mlox._problem.magic_box import is_magic_box
from mlox._utils.programs import equations, list_programs, without_constants

JAX = str(pathlib.Path(jax.__file__).parent)


class Traits(NamedTuple):
    """What stands in the program of a loss.

    Attributes:
        custom: A derivative of the user's own, by `jax.custom_vjp` or `jax.custom_jvp`.
        narrow: Numbers of 16 bits or fewer.
        norms: A root of an array that has no axis of the given length, as the standard
            deviation over the examples of a batch has.
        sampled: A `mlox.magic_box`.
    """

    custom: bool
    narrow: bool
    norms: bool
    sampled: bool


def read_program(function: Callable[..., Any], *args: Any, rows: int = 0) -> Traits:
    """Return what stands in the program of a function.

    Example:
        >>> spread = lambda x: jnp.std(x, axis=0)
        >>> read_program(spread, jnp.ones((3, 2)), rows=3)
        Traits(custom=False, narrow=False, norms=True, sampled=False)
    """
    found = list(equations(jax.make_jaxpr(function)(*args)))
    outputs = [
        (e.primitive.name, v.aval)
        for e in found
        for v in e.outvars
        if isinstance(v.aval, ShapedArray)
    ]
    return Traits(
        custom=any(_is_custom(e) for e in found),
        narrow=any(_is_narrow(aval.dtype) for _, aval in outputs),
        norms=any(
            name in ("rsqrt", "sqrt") and aval.ndim > 0 and rows not in aval.shape
            for name, aval in outputs
        ),
        sampled=any(map(is_magic_box, found)),
    )


def _is_custom(equation: Any) -> bool:
    """Return whether a rule stands here that is not one of JAX, such as of relu."""
    if not equation.primitive.name.startswith(("custom_vjp", "custom_jvp")):
        return False
    inner = map(without_constants, list_programs(equation.params.values()))
    sources = [str(program.debug_info.func_src_info) for program in inner]
    return not any(JAX in source for source in sources)


def _is_narrow(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
