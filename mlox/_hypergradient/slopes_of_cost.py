"""The gradient of a cost, in mixed mode where that is differentiated and pays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from mlox._graph.dependencies import Plan
from mlox._hypergradient.choices import note_choice
from mlox._hypergradient.mixed_mode import mixed_grad
from mlox._hypergradient.watch import is_watching, unwatched
from mlox._problem.problem import Problem
from mlox._utils.programs import equations
from mlox._utils.types import PyTree
from mlox.methods import Unrolled

Cost = Callable[..., tuple[jax.Array, Any]]

# Mixed mode stores the linearized cost twice, with its tangents, in place of the
# linearized gradient. It has some temporaries of the size of the parameters of its own
# (tangents, and the second gradient), so it pays where activations outweigh these.
PAYS = 4
PLAIN = "gradients in reverse mode"

# Second derivatives are symmetric where every derivative is the true one. One that is
# defined by a user need not be, nor that of an answer with an approximate solve.
DEFINED = frozenset({"attach", "custom_linear_solve"})


def slopes_of_cost(
    plan: Plan, problem: Problem, cost: Cost, *args: PyTree
) -> tuple[PyTree, Any]:
    """Return `jax.grad(cost, <all args>, has_aux=True)(*args)`."""
    asked = _asks_for_mixed_mode(plan, problem)
    if asked is not False:
        with unwatched():
            leaves, structure = jax.tree.flatten(args)
            of_leaves = lambda *x: cost(*jax.tree.unflatten(structure, x))
            program, shape = jax.make_jaxpr(of_leaves, return_shape=True)(*leaves)
        mixed = is_symmetric(program) and (asked or pays(program, leaves))
        note_choice(problem.name, "gradients in mixed mode" if mixed else PLAIN)
        if mixed:
            _note_reads(cost, args)
            return mixed_grad(program, shape, args)
    return jax.grad(cost, tuple(range(len(args))), has_aux=True)(*args)


def _asks_for_mixed_mode(plan: Plan, problem: Problem) -> bool | None:
    method = problem.method
    if isinstance(method, Unrolled) and problem.name in plan.responsive:
        return method.mixed
    return False


def is_symmetric(program: ClosedJaxpr) -> bool:
    """Return whether second derivatives of a program are known to be symmetric.

    And whether it has no effects, which would be repeated.
    """
    found = [e for e in equations(program) if _is_defined(e)]
    return not found and not program.effects


def pays(program: ClosedJaxpr, leaves: list[Any]) -> bool:
    """Return whether mixed mode stores less; nothing is run."""
    floats = [i for i, x in enumerate(program.consts) if _is_float(x)]
    least = PAYS * sum(map(_bytes_of, leaves))
    computed = sum(_bytes_of(v.aval) for e in equations(program) for v in e.outvars)
    if computed <= least:
        return False

    def cost(leaves: list[Any], moving: list[Any]) -> Any:
        consts = list(program.consts)
        for i, x in zip(floats, moving, strict=True):
            consts[i] = x
        return jaxpr_as_fun(ClosedJaxpr(program.jaxpr, consts))(*leaves)[0]

    moving = [program.consts[i] for i in floats]
    first = _stored(cost, leaves, moving)
    second = _stored(jax.grad(cost), leaves, moving)
    return second > 2 * first + least


def _stored(function: Callable[..., Any], *args: Any) -> int:
    """Return the bytes that reverse mode stores beside the arguments."""
    pull = lambda *args: jax.tree.leaves(jax.vjp(function, *args)[1])
    program = jax.make_jaxpr(pull)(*args).jaxpr
    found = {v for v in program.outvars if not isinstance(v, Literal)}
    found -= {*program.invars, *program.constvars}
    return sum(_bytes_of(v.aval) for v in found)


def _note_reads(cost: Cost, args: PyTree) -> None:
    """Show a watch, if there is one, the reads on which the gradient depends."""
    if not is_watching():
        return
    # In mixed mode cotangents of the cost itself arrive, also along reads that are
    # added to it and change no slope.
    leaves, structure = jax.tree.flatten(args)
    of_leaves = lambda *x: cost(*jax.tree.unflatten(structure, x))[0]
    program = jax.make_jaxpr(of_leaves)(*leaves)
    floats = [i for i, x in enumerate(program.consts) if _is_float(x)]

    def slopes(leaves: list[Any], moving: list[Any]) -> list[Any]:
        consts = list(program.consts)
        for i, x in zip(floats, moving, strict=True):
            consts[i] = x
        whole = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, consts))
        return jax.grad(lambda leaves: whole(*leaves)[0])(leaves)

    def pull(leaves: list[Any], moving: list[Any]) -> Any:
        found, transpose = jax.vjp(slopes, leaves, moving)
        return transpose(jax.tree.map(jnp.ones_like, found))

    jax.eval_shape(pull, leaves, [program.consts[i] for i in floats])


def _is_defined(equation: Any) -> bool:
    """Return whether an equation has a derivative that somebody defined."""
    name = equation.primitive.name
    if name.startswith("custom_jvp"):
        return not _is_of_jax(equation)
    return name in DEFINED or name.startswith("custom_vjp")


def _is_of_jax(equation: Any) -> bool:
    """Return whether a function with a rule of its own is one of JAX, e.g. relu."""
    source = equation.params["call_jaxpr"].jaxpr.debug_info.func_src_info or ""
    return str(Path(jax.__file__).parent) in source


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _bytes_of(x: Any) -> int:
    return int(x.size) * x.dtype.itemsize
