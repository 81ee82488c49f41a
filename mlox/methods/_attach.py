"""The implicit-function rule: an answer that knows how it responds."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from mlox.methods._contract import Answer
from mlox.methods._implicit import Implicit
from mlox.solvers import Solver, System

PyTree = Any


def attach(
    residual: Callable[..., PyTree],
    answer: PyTree,
    *args: PyTree,
    solver: Solver | None = None,
    system: System = System.GENERAL,
) -> PyTree:
    r"""Give an answer the derivative of the implicit function theorem.

    The identity on y = `answer`, however it was found, whose derivative with respect
    to x = `args` is that of the function y(x) with G(y(x), x) = 0,

        dy = -(dG/dy)^{-1} dG/dx dx.

    Forward and reverse mode, at any order; where nobody differentiates it costs
    nothing. A derivative that the answer carries itself (of the loop that found it) is
    cut.

    Args:
        residual: (answer, *args) -> a pytree of the structure of the answer, zero at
            the answer. It must not close over tracers: pass them in `args`.
        answer: A pytree of floating arrays.
        *args: What the answer responds to, pytrees.
        solver: How the linear system is solved; None picks one that fits `system`.
        system: The class of dG/dy, e.g. `System.DEFINITE` if G is the gradient of a
            convex cost.

    Returns:
        The answer.

    References:
        Blondel et al., Efficient and Modular Implicit Differentiation, 2022.

    Example:
        >>> import jax, mlox
        >>> def root(x):
        ...     found = jax.lax.stop_gradient(x) ** 0.5
        ...     return mlox.attach(lambda y, x: y**2 - x, found, x)
        >>> print(round(float(jax.grad(root)(4.0)), 6))
        0.25
        >>> print(round(float(jax.grad(jax.grad(root))(4.0)), 6))
        -0.03125
    """

    def solve(point: PyTree, args: PyTree, cotangent: PyTree) -> PyTree:
        problem = Answer(
            point=point,
            residual=lambda y: residual(y, *args),
            system=system,
            pull_update=lambda v: v,
        )
        return Implicit(solver).multiplier(problem, cotangent)[0]

    answer = jax.tree.map(jnp.asarray, answer)
    return attached(lambda y, args: residual(y, *args), solve, answer, args)


def attached(
    residual: Callable[[PyTree, PyTree], PyTree],
    adjoint: Callable[[PyTree, PyTree, PyTree], PyTree],
    answer: PyTree,
    args: PyTree,
) -> PyTree:
    """Attach an answer by any adjoint solve.

    A rule in forward mode, with the transpose of the adjoint solve as its solve: so
    both modes and all orders follow from what a method gives, and it is traced only
    where somebody differentiates.

    Args:
        residual: (y, args) -> G, of the structure of y.
        adjoint: (y, args, cotangent) -> (dG/dy)^{-T} cotangent, linear in the last.
        answer: y, a pytree of floating arrays.
        args: A pytree.

    Returns:
        The answer.
    """

    @jax.custom_jvp
    def identity(point: PyTree, args: PyTree) -> PyTree:
        del args
        return point

    def rule(primals: Any, tangents: Any) -> tuple[PyTree, PyTree]:
        # Starts from the attached point: or the second derivative of an answer would be
        # taken at a constant.
        point, args = identity(*primals), primals[1]
        zeros = jax.tree.map(jnp.zeros_like, point)
        leaves, structure = jax.tree.flatten(args)
        dots = structure.flatten_up_to(tangents[1])
        moving = [i for i, dot in enumerate(dots) if not isinstance(dot, SymbolicZero)]
        if not moving:
            return point, zeros

        def of_moving(*parts: PyTree) -> PyTree:
            changed = dict(enumerate(leaves)) | dict(zip(moving, parts, strict=True))
            there = jax.tree.unflatten(structure, changed.values())
            return residual(point, there)

        at, along = zip(*((leaves[i], dots[i]) for i in moving), strict=True)
        drift = jax.jvp(of_moving, at, along)[1]
        solve = jax.vjp(lambda v: adjoint(point, args, v), zeros)[1]
        return point, jax.tree.map(operator.neg, solve(drift)[0])

    identity.defjvp(rule, symbolic_zeros=True)
    return identity(jax.lax.stop_gradient(answer), args)
