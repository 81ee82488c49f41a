"""Convolutions in loops, which are unrolled on CPU.

XLA on CPU runs a convolution inside a `while` (so inside `lax.scan`, `fori_loop` and
`while_loop`) 11 (jaxlib 0.10) to 30 times (0.12) slower than the same convolution
outside of it. A loop whose body has one is therefore unrolled on CPU.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def has_convolution(jaxpr: Jaxpr | ClosedJaxpr) -> bool:
    """Return whether a program has a convolution, at any depth.

    Searches every program that is a parameter of an equation: those of `jit`, `remat`,
    `scan`, `cond`, `while_loop`, `custom_jvp`, `custom_vjp`, `custom_linear_solve`.

    Example:
        >>> import jax.numpy as jnp
        >>> has_convolution(jax.make_jaxpr(jnp.sin)(1.0))
        False
    """
    program = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(map(has_convolution, _list_programs(equation.params.values())))
        for equation in program.eqns
    )


def should_unroll(function: Callable[..., Any], *args: Any) -> bool:
    """Return whether a loop around `function` should be unrolled.

    Example:
        >>> import jax.numpy as jnp
        >>> should_unroll(jnp.sin, 1.0)
        False
    """
    if jax.default_backend() != "cpu":
        return False
    return has_convolution(jax.make_jaxpr(function)(*args))


def _list_programs(values: Iterable[Any]) -> Iterable[Jaxpr | ClosedJaxpr]:
    """Yield the programs among the parameters of an equation."""
    for value in values:
        if isinstance(value, Jaxpr | ClosedJaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _list_programs(value)
        elif isinstance(value, dict):
            yield from _list_programs(value.values())
