"""Shared parts of iterative solvers: fields, the start, the loop, the report."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from mlox._utils.convolutions import should_unroll
from mlox._utils.fields import (
    COUNT,
    COUNT_OR_ZERO,
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    Kind,
    check_fields,
    optional,
)
from mlox._utils.tree import add_scaled, find_unit, scale, vdot
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec
from mlox.solvers._products import map_products, skip_first

State = TypeVar("State")

FIELDS = {
    "iterations": COUNT,
    "step": optional(POSITIVE),
    "tolerance": NOT_NEGATIVE,
    "damping": NOT_NEGATIVE,
    "restart": optional(COUNT),
    "rank": COUNT_OR_ZERO,
    "seed": COUNT_OR_ZERO,
    "unroll": optional(FLAG._replace(error=ValueError)),
}


def check_solver(solver: Any, **kinds: Kind) -> None:
    """Raise an error if a field of a solver is not of its kind.

    Args:
        solver: the solver.
        kinds: those of fields that are not of the kind that `FIELDS` has.
    """
    names = (field.name for field in dataclasses.fields(solver))
    check_fields(solver, **{name: (FIELDS | kinds)[name] for name in names})


def add_damping(matvec: MatVec, damping: float) -> MatVec:
    """Return the map `x -> (A + damping I) x`; `matvec` itself without damping."""
    if damping == 0:
        return matvec
    return map_products(lambda one: lambda x: add_scaled(one(x), damping, x), matvec)


class Start(NamedTuple):
    """Where a solver starts, its vectors and norms in units of the right-hand side.

    Attributes:
        product: The map `x -> (A + damping I) x`, or those that were not yet used.
        r: The first residual.
        rr: `<r, r>`.
        bb: `<b, b>`.
        unit: A power of two of the size of `b`.
        guess: The first iterate, not in units; zero if None.
        used: The number of products that were made: one for a guess, since from zero
            the residual is `b`.
        unroll: Whether loops are written out.
    """

    product: MatVec
    r: Tree
    rr: jax.Array
    bb: jax.Array
    unit: jax.Array
    guess: Tree | None
    used: int
    unroll: bool

    def zeros(self) -> Tree:
        """Return the first iterate in units, counted from the guess."""
        return jax.tree.map(jnp.zeros_like, self.r)

    def finish(self, x: Tree) -> Tree:
        """Return the solution for an iterate in units, counted from the guess."""
        if self.guess is None:
            return scale(self.unit, x)
        return add_scaled(self.guess, self.unit, x)


def start(solver: Any, matvec: MatVec, b: Tree, guess: Tree | None) -> Start:
    """Return where a solver with the fields `damping` and `unroll` starts."""
    # The solver finds z of A z = r / unit, and x = guess + unit z. In these units the
    # squares in inner products neither underflow nor overflow; and since the unit is a
    # power of two, a scaled right-hand side takes the same iterations to the last bit.
    product = add_damping(matvec, solver.damping)
    unroll = should_unroll(matvec, b) if solver.unroll is None else solver.unroll
    b = jax.tree.map(jnp.asarray, b)
    unit = find_unit(b)
    scaled = scale(1 / unit, b)
    bb = vdot(scaled, scaled)
    if guess is None:
        return Start(product, scaled, bb, bb, unit, None, 0, unroll)
    guess = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), guess, b)
    r = scale(1 / unit, add_scaled(b, -1.0, product(guess)))
    return Start(skip_first(product), r, vdot(r, r), bb, unit, guess, 1, unroll)


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
    if unroll or unfinished is None:
        return repeat(lambda _, state: step(state), state, iterations, unroll)
    _, state = lax.while_loop(
        lambda carry: (carry[0] < iterations) & unfinished(carry[1]),
        lambda carry: (carry[0] + 1, step(carry[1])),
        (jnp.int32(0), state),
    )
    return state


def repeat(
    step: Callable[[Any, State], State], state: State, iterations: int, unroll: bool
) -> State:
    """Apply `step(i, state)` for i = 0, ..., iterations - 1."""
    if unroll:
        for i in range(iterations):
            state = step(i, state)
        return state
    return lax.fori_loop(0, iterations, step, state)


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
