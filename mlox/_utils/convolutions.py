"""Convolutions in loops, which are unrolled on CPU.

XLA on CPU runs a convolution inside a `while` (so inside `lax.scan`, `fori_loop` and
`while_loop`) 11 (jaxlib 0.10) to 30 times (0.12) slower than the same convolution
outside of it. A loop whose body has one is therefore unrolled on CPU.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from mlox._utils.programs import equations


def has_convolution(program: Jaxpr | ClosedJaxpr) -> bool:
    """Return whether a program has a convolution, at any depth.

    Example:
        >>> import jax.numpy as jnp
        >>> has_convolution(jax.make_jaxpr(jnp.sin)(1.0))
        False
    """
    return any(
        equation.primitive.name == "conv_general_dilated"
        for equation in equations(program)
    )


def should_unroll(function: Callable[..., Any], *args: Any) -> bool:
    """Return whether a loop around `function` should be unrolled.

    Example:
        >>> import jax.numpy as jnp
        >>> should_unroll(jnp.sin, 1.0)
        False
    """
    slow = has_slow_loops()
    return slow and has_convolution(jax.make_jaxpr(function)(*args))


def has_slow_loops() -> bool:
    """Return whether loops around a convolution are slow on the present backend."""
    return jax.default_backend() == "cpu"
