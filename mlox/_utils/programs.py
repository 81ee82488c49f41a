"""The equations of programs: what stands in a function, at any depth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def equations(program: Jaxpr | ClosedJaxpr) -> Iterator[Any]:
    """Yield the equations of a program and of every program that they hold.

    Those are the programs of `jit`, `remat`, `scan`, `cond`, `while_loop`,
    `custom_jvp`, `custom_vjp` and `custom_linear_solve`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> program = jax.make_jaxpr(jax.jit(jnp.sin))(1.0)
        >>> [equation.primitive.name for equation in equations(program)][-1]
        'sin'
    """
    for equation in without_constants(program).eqns:
        yield equation
        for inner in list_programs(equation.params.values()):
            yield from equations(inner)


def has_custom_vjp(program: Jaxpr | ClosedJaxpr) -> bool:
    """Return whether a program calls a function with a `jax.custom_vjp`.

    Such a function has no derivative in forward mode.

    Example:
        >>> import jax
        >>> has_custom_vjp(jax.make_jaxpr(jax.nn.relu)(1.0))  # has a custom_jvp
        False
    """
    return any(map(is_custom_vjp, equations(program)))


def is_custom_vjp(equation: Any) -> bool:
    """Return whether an equation calls a function with a `jax.custom_vjp`."""
    return equation.primitive.name.startswith("custom_vjp")


def without_constants(program: Jaxpr | ClosedJaxpr) -> Jaxpr:
    """Return the program of a closed one: equations hold either (JAX 0.10 and 0.12)."""
    return program.jaxpr if isinstance(program, ClosedJaxpr) else program


def list_programs(values: Iterable[Any]) -> Iterator[Jaxpr | ClosedJaxpr]:
    """Yield the programs among the parameters of an equation."""
    for value in values:
        if isinstance(value, Jaxpr | ClosedJaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from list_programs(value)
        elif isinstance(value, dict):
            yield from list_programs(value.values())
