"""Shared parts of iterative solvers: fields, the start, the loop, the report."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from mlox._utils.convolutions import should_unroll
from mlox._utils.fields import (
    COUNT,
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    check_fields,
    optional,
)
from mlox._utils.tree import add_scaled, vdot
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec

State = TypeVar("State")

FIELDS = {
    "iterations": COUNT,
    "step": POSITIVE,
    "tolerance": NOT_NEGATIVE,
    "damping": NOT_NEGATIVE,
    "restart": optional(COUNT),
    "unroll": optional(FLAG._replace(error=ValueError)),
}


def check_solver(solver: Any) -> None:
    """Raise ValueError if a field of a solver is not of its kind."""
    names = (field.name for field in dataclasses.fields(solver))
    check_fields(solver, **{name: FIELDS[name] for name in names})


def add_damping(matvec: MatVec, damping: float) -> MatVec:
    """Return the map `x -> (A + damping I) x`; `matvec` itself without damping."""
    if damping == 0:
        return matvec
    return lambda x: add_scaled(matvec(x), damping, x)


def start(
    solver: Any, matvec: MatVec, b: Tree, guess: Tree | None
) -> tuple[MatVec, Tree, Tree, jax.Array, jax.Array, int, bool]:
    """Return where a solver with the fields `damping` and `unroll` starts.

    A product is made only for a guess: from zero the residual is `b`.

    Returns:
        The map `x -> (A + damping I) x`; the first iterate `x` and its residual
        `r = b - A x`; `<r, r>` and `<b, b>`; the number of products that were made;
        and whether loops are written out.
    """
    product = add_damping(matvec, solver.damping)
    unroll = should_unroll(matvec, b) if solver.unroll is None else solver.unroll
    b = jax.tree.map(jnp.asarray, b)
    bb = vdot(b, b)
    if guess is None:
        return product, jax.tree.map(jnp.zeros_like, b), b, bb, bb, 0, unroll
    x = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), guess, b)
    r = add_scaled(b, -1.0, product(x))
    return product, x, r, vdot(r, r), bb, 1, unroll


def iterate(
    step: Callable[[State], State],
    state: State,
    iterations: int,
    unfinished: Callable[[State], jax.Array] | None,
    unroll: bool,
) -> State:
    """Apply `step` at most `iterations` times.

    `step` must leave a finished state as it is: only the while loop asks whether the
    state is finished, to save the remaining products.

    Args:
        step: one iteration.
        state: where it starts.
        iterations: how often `step` is applied at most.
        unfinished: whether a state needs further steps. If None the loop has a static
            length, which costs an accelerator no answer to the host in each step.
        unroll: write the loop out (see `mlox._utils.convolutions`), at its full length.

    Returns:
        The last state.
    """
    if unroll:
        for _ in range(iterations):
            state = step(state)
        return state
    if unfinished is None:
        return lax.fori_loop(0, iterations, lambda _, state: step(state), state)
    _, state = lax.while_loop(
        lambda carry: (carry[0] < iterations) & unfinished(carry[1]),
        lambda carry: (carry[0] + 1, step(carry[1])),
        (jnp.int32(0), state),
    )
    return state


def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Return the quotient, and 0 where the denominator is 0."""
    nonzero = denominator != 0
    return jnp.where(nonzero, numerator / jnp.where(nonzero, denominator, 1), 0)


def report(rr: jax.Array, bb: jax.Array, iterations: jax.Array | int) -> Info:
    """Return the report for `<r, r>`, `<b, b>` and the number of products used."""
    return {
        "residual": jnp.sqrt(divide(rr, bb)),
        "iterations": jnp.asarray(iterations, jnp.int32),
    }
