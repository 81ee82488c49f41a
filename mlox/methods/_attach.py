"""The implicit-function rule: an answer that carries its implicit derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from mlox._utils.describe import show_differences, summarize
from mlox._utils.fields import check, instance_of, optional
from mlox._utils.types import PyTree
from mlox.methods._base import Answer, reach
from mlox.methods._implicit import Implicit
from mlox.solvers import Solver, System

SYSTEM = instance_of(System, "a mlox.System, e.g. mlox.System.DEFINITE")
Leaves = Sequence[Any]
Tangent = Callable[[Leaves, Leaves, Mapping[int, jax.Array]], Leaves]


def attach(
    residual: Callable[..., PyTree],
    answer: PyTree,
    *args: PyTree,
    solver: Solver | None = None,
    system: System | None = None,
) -> PyTree:
    r"""Give an answer the derivative of the implicit function theorem.

    The identity on y = `answer`, however it was found, whose derivative with respect to
    x (`args`, and what `residual` closes over) is that of the function y(x) with
    G(y(x), x) = 0,

        dy = -(dG/dy)^{-1} dG/dx dx.

    It works in forward and reverse mode and at any order, and costs nothing unless it
    is differentiated. The derivative of the answer through the loop that found it is
    dropped.

    Args:
        residual: (answer, *args) -> a pytree of the structure of the answer, zero at
            the answer.
        answer: A pytree of floating arrays, the best response.
        *args: What the answer responds to, pytrees.
        solver: How the linear system is solved; None picks one that fits `system`.
        system: The class of dG/dy, e.g. `System.DEFINITE` if G is the gradient of a
            convex cost. None stands for the class that the solver serves, so that
            `mlox.CG()` alone claims a definite system, and for `System.GENERAL` without
            a solver.

    Returns:
        The answer.

    Raises:
        TypeError: If `residual` is not a function, `answer` holds a leaf that is not a
            floating array, or `system` is not a `mlox.System`.
        ValueError: If the residual differs from the answer in structure, shapes or
            dtypes, or if the solver does not serve the system.

    References:
        Blondel et al., Efficient and Modular Implicit Differentiation, 2022.

    Example:
        >>> import jax, mlox
        >>> def root(x):
        ...     found = jax.lax.stop_gradient(x) ** 0.5
        ...     return mlox.attach(lambda y: y**2 - x, found)
        >>> print(round(float(jax.grad(root)(4.0)), 6))
        0.25
        >>> print(round(float(jax.grad(jax.grad(root))(4.0)), 6))
        -0.03125
    """
    method = Implicit(solver)
    check("attach: system", system, optional(SYSTEM))
    reached = reach(method)
    if system is None:
        system = reached or System.GENERAL
    if System.NONE < reached < system:
        raise ValueError(
            f"attach: {solver} does not serve System.{system.name}; expected a solver "
            "that does, such as mlox.GMRES(). If dG/dy is of the class of the solver, "
            "leave system out."
        )
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
    answer = jax.tree.map(jnp.asarray, answer)
    closed, shapes = jax.make_jaxpr(residual, return_shape=True)(answer, *args)
    if differences := show_differences(shapes, answer):
        raise ValueError(
            f"attach: the residual differs from the answer: {differences}. Return a "
            "pytree like the answer."
        )
    structure = jax.tree.structure(answer)

    # A tracer that the residual closes over would have the derivative zero: `tangent`
    # below differentiates arguments only. So the constants of its jaxpr become
    # arguments. (`jax.closure_convert` hoists floating tracers only: integers and PRNG
    # keys then fail under grad of vmap and in scans.)
    def hoisted(y: PyTree, inputs: tuple[PyTree, list[Any]]) -> PyTree:
        args, consts = inputs
        program = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))
        return jax.tree.unflatten(structure, program(*jax.tree.leaves((y, *args))))

    def solve(y: PyTree, inputs: PyTree, cotangent: PyTree) -> PyTree:
        problem = Answer(
            point=y,
            residual=lambda y: hoisted(y, inputs),
            system=system,
            pull_update=lambda v: v,
        )
        return method.multiplier(problem, cotangent)[0]

    return attach_answer(hoisted, solve, answer, (args, list(closed.consts)))


def attach_answer(
    residual: Callable[[PyTree, PyTree], PyTree],
    adjoint: Callable[[PyTree, PyTree, PyTree], PyTree],
    answer: PyTree,
    args: PyTree,
) -> PyTree:
    """Attach an answer by any adjoint solve.

    Args:
        residual: (y, args) -> G, of the structure of y. Neither function may close over
            tracers.
        adjoint: (y, args, cotangent) -> (dG/dy)^{-T} cotangent, linear in the last.
        answer: y, a pytree of floating arrays.
        args: A pytree.

    Returns:
        The answer.
    """
    point, structure = jax.tree.flatten(jax.lax.stop_gradient(answer))
    leaves, args_structure = jax.tree.flatten(args)

    # The rule in forward mode, dy = -(dG/dy)^{-1} (dG/dx dx). The inverse is the
    # transpose of the adjoint solve, v -> (dG/dy)^{-T} v, so that forward mode, reverse
    # mode and all orders follow from the one solve that a method gives.
    def tangent(point: Leaves, args: Leaves, dots: Mapping[int, jax.Array]) -> Leaves:
        y = jax.tree.unflatten(structure, point)

        def of_moving(parts: Mapping[int, jax.Array]) -> PyTree:
            changed = [parts.get(i, leaf) for i, leaf in enumerate(args)]
            return residual(y, jax.tree.unflatten(args_structure, changed))

        x = jax.tree.unflatten(args_structure, args)
        dG = jax.jvp(of_moving, ({i: args[i] for i in dots},), (dots,))[1]
        zeros = jax.tree.map(jnp.zeros_like, y)
        inverse = jax.vjp(lambda v: adjoint(y, x, v), zeros)[1]
        return [-leaf for leaf in jax.tree.leaves(inverse(dG)[0])]

    found = _attach.bind(*point, *leaves, count=len(point), tangent=tangent)
    return jax.tree.unflatten(structure, found)


# Why a primitive: `lax.custom_root` and `jax.custom_jvp` state the same rule, but
# JAX 0.10 drops it where it splits the body of a scan for reverse mode: the second
# derivative of an answer inside `lax.scan` then is silently that of a constant (0.333
# off in tests/test_laws.py; JAX 0.12 keeps the rule). `jax.custom_vjp` is right there,
# but forbids forward mode. Every transformation keeps a primitive. When JAX 0.12 is the
# lowest version that mlox supports, a `custom_jvp` of `tangent` can take its place; see
# docs/internals.md for the table.
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
    # Binds itself again: at an unattached point, second derivatives would be those of a
    # constant (two levels right, three silently wrong).
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
