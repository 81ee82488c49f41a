"""Derivatives of a linear solve, for every solver at once."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mlox._utils.describe import find_non_array, show_differences, summarize
from mlox._utils.tree import link_leaves
from mlox._utils.types import Tree
from mlox.solvers._base import Info, MatVec, Solver, System, serves
from mlox.solvers._products import Products, map_products, takes_draws


def linear_solve(
    solver: Solver,
    matvec: MatVec,
    b: Tree,
    guess: Tree | None = None,
    *,
    symmetric: bool = False,
) -> tuple[Tree, Info]:
    """Solve `A x = b` by any solver, differentiably at any order.

    The derivative is that of the solution, not of the iterations:
    `dx = A^-1 (db - dA x)`, one more solve by the same solver, in forward mode and in
    reverse mode (there with the transpose of `A`). It is as exact as `x`. `matvec` may
    close over anything that `A` depends on. The guess has no derivative, and the solves
    of a derivative start at zero.

    If `serves(solver)` is `System.NONE`, the solver is called directly: the derivative
    of `Identity` is the identity.

    With `Products` in place of `matvec` there is no one matrix. The derivative is then
    by the first of them, and as noisy as `x`.

    Args:
        solver: the solver, see `Solver`.
        matvec: the linear map `x -> A x`, on pytrees like `b`, or `Products` for a
            solver that `takes_draws`.
        b: the right-hand side, a pytree of real floating arrays.
        guess: the first iterate, a pytree like `b`; zero if None.
        symmetric: whether `A` is symmetric; then its transpose is not computed.

    Returns:
        `x`, a pytree like `b`, and the solver's report, without derivative.

    Raises:
        TypeError: if `solver` or `matvec` is not a function, a leaf of `b` or `guess`
            is not an array, or the solver does not return a pair.
        ValueError: if a leaf of `b` is not a real floating number, or if `guess`
            differs from `b` in structure or shapes, or if `matvec` is `Products` and
            the solver needs one matrix.

    Example:
        >>> from mlox.solvers import CG, linear_solve
        >>> def solution(a):
        ...     return linear_solve(CG(), lambda x: a * x, 3.0, symmetric=True)[0]
        >>> print(solution(2.0), jax.grad(solution)(2.0), jax.hessian(solution)(2.0))
        1.5 -0.75 0.75
    """
    _check_function("solver", solver, "a value such as mlox.CG()")
    _check_function("matvec", matvec, "a function x -> A x")
    if isinstance(matvec, Products) and not takes_draws(solver):
        raise ValueError(
            f"linear_solve: {summarize(solver)} got products with several matrices, "
            "but needs one for all its iterations. Use a solver that takes draws, such "
            "as mlox.Neumann() or mlox.Richardson()."
        )
    if wrong := find_non_array((b, guess)):
        raise TypeError(
            f"linear_solve: (b, guess){wrong}; expected pytrees of floating arrays."
        )
    b = jax.tree.map(jnp.asarray, b)
    for path, leaf in jax.tree_util.tree_leaves_with_path(b):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"linear_solve: b{jax.tree_util.keystr(path)} has dtype {leaf.dtype}; "
                "expected a real floating one. Convert it with astype, or take it out "
                "of the system."
            )
    if guess is not None:
        _check_like_b(
            "guess", guess, b, "Give a guess like b, or None to start at zero."
        )
        guess = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), guess, b)
    if serves(solver) is System.NONE:
        return solver(matvec, b, guess)
    matvec = _keep_trace(matvec)
    _check_like_b("matvec(b)", jax.eval_shape(matvec, b), b)
    return _solve(solver, matvec, b, guess, symmetric)


def _solve(
    solver: Solver, matvec: MatVec, b: Tree, guess: Tree | None, symmetric: bool
) -> tuple[Tree, Info]:
    """Solve by the rule of `jax.lax.custom_linear_solve`."""
    # Differentiate A x = b (Giles, Collected matrix derivative results for forward and
    # reverse mode algorithmic differentiation, 2008): a tangent solves a system with A,
    #
    #     dA x + A dx = db    so    dx = A^-1 (db - dA x),
    #
    # and a cotangent v of x one with A^T: w = A^-T v is that of b, and since <v, dx> =
    # <w, db - dA x>, what A depends on gets the gradient of -<w, A x> at fixed w and x.
    #
    # JAX's rule solves the systems of a derivative by the function that it is given
    # for A x = b itself, which would start them at the guess. So the guess rides along
    # as a second block of unknowns, [A 0; 0 I] [x; g] = [b; guess]: its derivative is
    # zero, and that is where the derivative's solve starts.

    def solve(_: Any, rhs: tuple[Tree, Tree | None]) -> tuple[Tree, Info]:
        b, guess = rhs
        x, info = _check_solution(solver(matvec, b, guess), b)
        return (x, guess), info

    def transpose_solve(_: Any, rhs: tuple[Tree, Tree | None]) -> tuple[Tree, Info]:
        b, guess = rhs
        x, info = _check_solution(solver(transpose, b, None), b)
        return (x, guess), info

    def transposed(matvec: MatVec) -> MatVec:
        return lambda y: jax.linear_transpose(matvec, b)(y)[0]

    transpose = matvec if symmetric else map_products(transposed, matvec)

    # JAX differentiates this map and never multiplies by it: the links cost the solves
    # nothing, as these use `matvec`. They are on both sides since the map is transposed
    # before the transposed solve is differentiated in its turn.
    def linked_matvec(unknowns: tuple[Tree, Tree | None]) -> tuple[Tree, Tree | None]:
        x, guess = link_leaves(unknowns)
        return link_leaves((matvec(x), guess))

    solution, info = lax.custom_linear_solve(
        linked_matvec,
        _link_tangent((b, lax.stop_gradient(guess))),
        solve=solve,
        transpose_solve=transpose_solve,
        symmetric=symmetric,
        has_aux=True,
    )
    # The right-hand side of a transposed solve is the cotangent of this one's solution.
    x, _ = _link_tangent(solution)
    return x, lax.stop_gradient(info)


def _keep_trace(matvec: MatVec) -> MatVec:
    """Return a linear map, or many, which is traced once."""
    # The rule traces the map four to six times; jit keeps the first trace, which halves
    # the time to trace a solve with Hessian products of a deep network.
    if isinstance(matvec, Products):
        indexed = jax.jit(lambda i, x: matvec.at(i)(x))
        return Products(lambda i: lambda x: indexed(i, x))
    return jax.jit(lambda x: matvec(x))


@jax.custom_jvp
def _link_tangent(tree: Tree) -> Tree:
    """Return `tree`, with the leaves of its tangent linked: no cost without one."""
    return tree


@_link_tangent.defjvp
def _(primals: tuple[Tree], tangents: tuple[Tree]) -> tuple[Tree, Tree]:
    return _link_tangent(*primals), link_leaves(*tangents)


def _check_function(label: str, value: Any, expected: str) -> None:
    if not callable(value) or isinstance(value, type):
        raise TypeError(
            f"linear_solve: {label} is {summarize(value)}; expected {expected}."
        )


def _check_solution(found: Any, b: Tree) -> tuple[Tree, Info]:
    """Raise if a solver of the user's own returned no solution and report."""
    pair = isinstance(found, tuple) and len(found) == 2
    if not pair or not isinstance(found[1], Mapping):
        raise TypeError(
            f"linear_solve: the solver returned {summarize(found)}; expected a pair "
            "(x, report), the report a dict of scalars."
        )
    _check_like_b("the solver returned an x that", found[0], b)
    return found


def _check_like_b(
    label: str, given: Any, b: Tree, remedy: str = "Return a pytree like b."
) -> None:
    """Raise ValueError if a pytree differs from `b` in structure or shapes."""

    def describe(tree: Any) -> tuple[Any, list[tuple[int, ...]]]:
        return jax.tree.structure(tree), list(map(jnp.shape, jax.tree.leaves(tree)))

    if describe(given) != describe(b):
        differences = show_differences(given, b)
        raise ValueError(
            f"linear_solve: {label} differs from b: {differences}. {remedy}"
        )
