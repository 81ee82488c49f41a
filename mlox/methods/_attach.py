"""The implicit-function rule: an answer that knows how it responds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from mlox._utils.describe import summarize
from mlox._utils.types import PyTree
from mlox.methods._base import Answer
from mlox.methods._implicit import Implicit
from mlox.solvers import Solver, System

Leaves = Sequence[Any]
Tangent = Callable[[Leaves, Leaves, Mapping[int, jax.Array]], Leaves]


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
    method = Implicit(solver)
    if not callable(residual):
        raise TypeError(
            f"attach: residual is {summarize(residual)}; expected a function (answer, "
            "*args) -> a pytree like the answer."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(answer):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"attach: answer{jax.tree_util.keystr(path)} is {summarize(leaf)}; "
                "expected a floating array."
            )

    def solve(point: PyTree, args: PyTree, cotangent: PyTree) -> PyTree:
        problem = Answer(
            point=point,
            residual=lambda y: residual(y, *args),
            system=system,
            pull_update=lambda v: v,
        )
        return method.multiplier(problem, cotangent)[0]

    def like_answer(y: PyTree, args: PyTree) -> PyTree:
        found = residual(y, *args)
        if summarize(found, 10**6) != summarize(y, 10**6):
            raise ValueError(
                f"attach: the residual is {summarize(found)}; expected a pytree like "
                f"the answer, {summarize(y)}."
            )
        return found

    answer = jax.tree.map(jnp.asarray, answer)
    return attached(like_answer, solve, answer, args)


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
    point, structure = jax.tree.flatten(jax.lax.stop_gradient(answer))
    leaves, args_structure = jax.tree.flatten(args)

    def tangent(point: Leaves, args: Leaves, dots: Mapping[int, jax.Array]) -> Leaves:
        y = jax.tree.unflatten(structure, point)

        def of_moving(parts: Mapping[int, jax.Array]) -> PyTree:
            changed = [parts.get(i, leaf) for i, leaf in enumerate(args)]
            return residual(y, jax.tree.unflatten(args_structure, changed))

        there = jax.tree.unflatten(args_structure, args)
        drift = jax.jvp(of_moving, ({i: args[i] for i in dots},), (dots,))[1]
        zeros = jax.tree.map(jnp.zeros_like, y)
        solve = jax.vjp(lambda v: adjoint(y, there, v), zeros)[1]
        return [-leaf for leaf in jax.tree.leaves(solve(drift)[0])]

    found = _attach.bind(*point, *leaves, count=len(point), tangent=tangent)
    return jax.tree.unflatten(structure, found)


# A primitive of its own, since JAX 0.10 drops a `custom_jvp` rule where it splits the
# body of a scan for reverse mode: the derivative of such a derivative is then that of a
# constant. (JAX 0.12 keeps it.) A primitive is kept by every transformation.
_attach = Primitive("attach")
_attach.multiple_results = True


@_attach.def_impl
@_attach.def_abstract_eval
def _identity(*leaves: Any, count: int, tangent: Tangent) -> list[Any]:
    del tangent
    return list(leaves[:count])


def _jvp(
    primals: Leaves, tangents: Leaves, *, count: int, tangent: Tangent
) -> tuple[Leaves, Leaves]:
    # Starts from the attached point: or the second derivative of an answer would be
    # taken at a constant.
    point = _attach.bind(*primals, count=count, tangent=tangent)
    dots = {i: d for i, d in enumerate(tangents[count:]) if not isinstance(d, ad.Zero)}
    if not dots:
        return point, [jnp.zeros_like(leaf) for leaf in point]
    return point, tangent(point, primals[count:], dots)


def _batch(
    axis: Any, leaves: Leaves, dims: Leaves, *, count: int, tangent: Tangent
) -> tuple[Leaves, Leaves]:
    if all(dim is None for dim in dims):
        return _attach.bind(*leaves, count=count, tangent=tangent), dims[:count]
    leaves = [
        batching.bdim_at_front(leaf, dim, axis.size)
        for leaf, dim in zip(leaves, dims, strict=True)
    ]
    mapped = jax.vmap(tangent, axis_name=axis.name, axis_size=axis.size)
    found = _attach.bind(*leaves, count=count, tangent=mapped)
    return found, [0] * count


ad.primitive_jvps[_attach] = _jvp
batching.fancy_primitive_batchers[_attach] = _batch
mlir.register_lowering(_attach, mlir.lower_fun(_identity, multiple_results=True))
