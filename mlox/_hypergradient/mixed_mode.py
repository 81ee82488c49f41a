"""Mixed mode: gradients that are differentiated by a jvp, in reverse mode as well."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from mlox._utils.types import PyTree

# The gradient g(y, x) = C_y of a cost has, for a cotangent u, the derivative
#
#     (dg/dy)^T u = C_yy u,    (dg/dx)^T u = C_xy u,
#
# by the symmetry of second derivatives the change of (C_y, C_x) as y moves along u: a
# jvp of the gradient. Reverse mode of a gradient would go backwards through its own
# backward pass, and store what both compute; the jvp stores one pass and its tangents
# (Kemaev et al., Scalable Meta-Learning via Mixed-Mode Differentiation, 2025).
#
# Two primitives, as every transformation keeps a primitive (see methods/_attach.py):
# the gradient, and its derivative, which is linear and has that transpose. A
# `custom_vjp` would forbid forward mode, `linear_call` has no rule for vmap.

Leaves = Sequence[Any]
Parts = Mapping[int, Any]


class Rules(NamedTuple):
    """A gradient and its derivatives at leaves (*y, *x).

    Attributes:
        value: leaves -> [*C_y, *aux].
        push: (leaves, dots) -> [*dC_y] along tangents of some leaves.
        push_aux: (leaves, dots) -> [*daux].
        pull: (leaves, u, moving) -> the cotangents of the leaves in `moving`.
    """

    value: Callable[[Leaves], list[Any]]
    push: Callable[[Leaves, Parts], list[Any]]
    push_aux: Callable[[Leaves, Parts], list[Any]]
    pull: Callable[[Leaves, Leaves, tuple[int, ...]], list[Any]]


def mixed_grad(program: ClosedJaxpr, shape: Any, args: PyTree) -> tuple[PyTree, PyTree]:
    """Return the gradient with respect to `args`, a pytree of floats, and the rest.

    Args:
        program: *leaves of args -> (scalar, *rest); its constants may be tracers.
        shape: The structure (scalar, rest).
        args: The arguments.
    """
    y, structure = jax.tree.flatten(args)
    rules = _make_rules(program, len(y))
    found = _gradient.bind(*y, *program.consts, count=len(y), rules=rules)
    slopes, rest = found[: len(y)], found[len(y) :]
    return (
        jax.tree.unflatten(structure, slopes),
        jax.tree.unflatten(jax.tree.structure(shape[1]), rest),
    )


def _make_rules(program: ClosedJaxpr, count: int) -> Rules:
    """Return the rules of a program whose constants are the leaves after the first."""
    jaxpr = program.jaxpr

    def cost(leaves: Leaves) -> tuple[Any, list[Any]]:
        value, *rest = jaxpr_as_fun(ClosedJaxpr(jaxpr, leaves[count:]))(*leaves[:count])
        return value, rest

    def fill(leaves: Leaves, parts: Parts) -> list[Any]:
        return [parts.get(i, x) for i, x in enumerate(leaves)]

    def slopes(leaves: Leaves, moving: Sequence[int]) -> list[Any]:
        found = jax.grad(lambda parts: cost(fill(leaves, parts))[0])(
            {i: leaves[i] for i in moving}
        )
        return [found[i] for i in moving]

    def value(leaves: Leaves) -> list[Any]:
        found, rest = jax.grad(lambda y: cost([*y, *leaves[count:]]), has_aux=True)(
            list(leaves[:count])
        )
        return [*found, *rest]

    def along(function: Callable[[Leaves], Any], leaves: Leaves, dots: Parts) -> Any:
        at = {i: leaves[i] for i in dots}
        return jax.jvp(lambda at: function(fill(leaves, at)), (at,), (dict(dots),))[1]

    def push(leaves: Leaves, dots: Parts) -> list[Any]:
        return along(lambda leaves: slopes(leaves, range(count)), leaves, dots)

    def push_aux(leaves: Leaves, dots: Parts) -> list[Any]:
        return along(lambda leaves: cost(leaves)[1], leaves, dots)

    def pull(leaves: Leaves, u: Leaves, moving: tuple[int, ...]) -> list[Any]:
        dots = dict(enumerate(u))
        return along(lambda leaves: slopes(leaves, moving), leaves, dots)

    return Rules(value, push, push_aux, pull)


def _map_rules(rules: Rules, axis: Any, dims: Sequence[int | None]) -> Rules:
    """Return rules mapped along the axes of some leaves; tangents have it in front."""
    over = functools.partial(jax.vmap, axis_name=axis.name, axis_size=axis.size)
    dims = list(dims)

    def pull(leaves: Leaves, u: Leaves, moving: tuple[int, ...]) -> list[Any]:
        one = lambda leaves, u: rules.pull(leaves, u, moving)
        return over(one, in_axes=(dims, 0))(list(leaves), list(u))

    def value(leaves: Leaves) -> list[Any]:
        return over(rules.value, in_axes=(dims,))(list(leaves))

    def push(leaves: Leaves, dots: Parts) -> list[Any]:
        return over(rules.push, in_axes=(dims, 0))(list(leaves), dict(dots))

    def push_aux(leaves: Leaves, dots: Parts) -> list[Any]:
        return over(rules.push_aux, in_axes=(dims, 0))(list(leaves), dict(dots))

    return Rules(value, push, push_aux, pull)


# The gradient: leaves -> [*C_y, *aux].

_gradient = Primitive("mixed_gradient")
_gradient.multiple_results = True


@_gradient.def_impl
def _evaluate(*leaves: Any, count: int, rules: Rules) -> list[Any]:
    del count
    return rules.value(leaves)


@_gradient.def_abstract_eval
def _shapes(*avals: Any, count: int, rules: Rules) -> list[Any]:
    del count
    leaves = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals]
    return [_aval_of(x) for x in jax.eval_shape(lambda *x: rules.value(x), *leaves)]


def _jvp_of_gradient(
    primals: Leaves, tangents: Leaves, *, count: int, rules: Rules
) -> tuple[Leaves, Leaves]:
    found = _gradient.bind(*primals, count=count, rules=rules)
    dots = {
        i: ad.instantiate_zeros(d)
        for i, d in enumerate(tangents)
        if not isinstance(d, ad.Zero) and _is_float(primals[i])
    }
    if not dots:
        return found, [_zero_of(x) for x in found]
    slope = _bind_derivative(primals, dots, count, rules)
    aux = [
        d if _is_float(x) else _zero_of(x)
        for d, x in zip(rules.push_aux(primals, dots), found[count:], strict=True)
    ]
    return found, [*slope, *aux]


def _batch_gradient(
    axis: Any, leaves: Leaves, dims: Leaves, *, count: int, rules: Rules
) -> tuple[Leaves, Leaves]:
    if all(dim is None for dim in dims):
        found = _gradient.bind(*leaves, count=count, rules=rules)
        return found, [None] * len(found)
    mapped = _map_rules(rules, axis, dims)
    found = _gradient.bind(*leaves, count=count, rules=mapped)
    return found, [0] * len(found)


# Its derivative: (leaves, dots) -> [*dC_y], linear in the dots.

_derivative = Primitive("mixed_derivative")
_derivative.multiple_results = True


def _bind_derivative(
    leaves: Leaves, dots: Parts, count: int, rules: Rules
) -> list[Any]:
    return _derivative.bind(
        *leaves, *dots.values(), moving=tuple(dots), count=count, rules=rules
    )


@_derivative.def_impl
def _push(*args: Any, moving: tuple[int, ...], count: int, rules: Rules) -> list[Any]:
    del count
    leaves, dots = _split(args, moving)
    return rules.push(leaves, dots)


@_derivative.def_abstract_eval
def _slope_shapes(
    *avals: Any, moving: tuple[int, ...], count: int, rules: Rules
) -> list[Any]:
    args = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals]
    found = jax.eval_shape(
        lambda *args: _push(*args, moving=moving, count=count, rules=rules), *args
    )
    return [_aval_of(x) for x in found]


def _jvp_of_derivative(
    primals: Leaves,
    tangents: Leaves,
    *,
    moving: tuple[int, ...],
    count: int,
    rules: Rules,
) -> tuple[Leaves, Leaves]:
    bind = functools.partial(_derivative.bind, moving=moving, count=count, rules=rules)
    found = bind(*primals)
    leaves, dots = _split(primals, moving)
    of_leaves, of_dots = tangents[: len(leaves)], tangents[len(leaves) :]
    moved = {
        i: d
        for i, d in enumerate(of_leaves)
        if not isinstance(d, ad.Zero) and _is_float(leaves[i])
    }
    parts: list[Leaves] = []
    if any(not isinstance(d, ad.Zero) for d in of_dots):
        parts.append(bind(*leaves, *map(ad.instantiate_zeros, of_dots)))
    if moved:

        def at(some: Parts) -> list[Any]:
            return rules.push([some.get(i, x) for i, x in enumerate(leaves)], dots)

        here = {i: leaves[i] for i in moved}
        parts.append(jax.jvp(at, (here,), (moved,))[1])
    if not parts:
        return found, [_zero_of(x) for x in found]
    return found, [
        functools.reduce(jnp.add, terms) for terms in zip(*parts, strict=True)
    ]


def _transpose(
    cotangents: Leaves,
    *args: Any,
    moving: tuple[int, ...],
    count: int,
    rules: Rules,
) -> list[Any]:
    del count
    leaves, dots = _split(args, moving)
    u = list(map(ad.instantiate_zeros, cotangents))
    wanted = tuple(i for i, d in dots.items() if ad.is_undefined_primal(d))
    found = dict(zip(wanted, rules.pull(leaves, u, wanted), strict=True))
    return [*(None for _ in leaves), *(found.get(i) for i in moving)]


def _batch_derivative(
    axis: Any,
    args: Leaves,
    dims: Leaves,
    *,
    moving: tuple[int, ...],
    count: int,
    rules: Rules,
) -> tuple[Leaves, Leaves]:
    if all(dim is None for dim in dims):
        found = _derivative.bind(*args, moving=moving, count=count, rules=rules)
        return found, [None] * len(found)
    size = len(args) - len(moving)
    leaves, dots = args[:size], args[size:]
    dots = [
        batching.bdim_at_front(d, dim, axis.size)
        for d, dim in zip(dots, dims[size:], strict=True)
    ]
    mapped = _map_rules(rules, axis, dims[:size])
    found = _derivative.bind(*leaves, *dots, moving=moving, count=count, rules=mapped)
    return found, [0] * len(found)


def _split(args: Leaves, moving: tuple[int, ...]) -> tuple[Leaves, dict[int, Any]]:
    size = len(args) - len(moving)
    return args[:size], dict(zip(moving, args[size:], strict=True))


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _zero_of(x: Any) -> Any:
    return ad.Zero(jax.typeof(x).to_tangent_aval())


def _aval_of(x: jax.ShapeDtypeStruct) -> Any:
    return ShapedArray(x.shape, x.dtype)


ad.primitive_jvps[_gradient] = _jvp_of_gradient
batching.fancy_primitive_batchers[_gradient] = _batch_gradient
mlir.register_lowering(_gradient, mlir.lower_fun(_evaluate, multiple_results=True))
ad.primitive_jvps[_derivative] = _jvp_of_derivative
ad.primitive_transposes[_derivative] = _transpose
batching.fancy_primitive_batchers[_derivative] = _batch_derivative
mlir.register_lowering(_derivative, mlir.lower_fun(_push, multiple_results=True))
