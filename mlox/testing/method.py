"""The laws of methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from mlox._utils.fields import Kind, check
from mlox._utils.types import PyTree
from mlox.methods import Answer, Method, call_multiplier, reach
from mlox.solvers import System
from mlox.testing.graphs import check_graphs
from mlox.testing.laws import (
    float_types,
    law,
    require_close,
    require_finite,
    require_like,
    require_report,
    require_value,
)
from mlox.testing.memory import check_memory
from mlox.testing.systems import make_matrix, make_tree, multiply

Inverse = Callable[[jax.Array, jax.Array], jax.Array]
POSITIVE = Kind("a number > 0", lambda x: isinstance(x, int | float) and x > 0)
METHOD = Kind(
    "a method, a value with the functions multiplier and pairing (`Unrolled` and "
    "`Detached` have none, the engine differentiates their loops)",
    lambda x: isinstance(x, Method) and not isinstance(x, type),
    TypeError,
)
RATE = 0.1
"""The learning rate of the optimizer of the lower problems: plain gradient descent."""


def solve_transposed(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """Return the multiplier of an exact method, the solution of H^T lambda = v."""
    return jnp.linalg.solve(matrix.T, vector)


def check_method(
    method: Method,
    *,
    expected: Inverse = solve_transposed,
    tolerance: float = 1e-2,
) -> None:
    r"""Check the laws of a method of differentiation.

    Its multiplier is a pytree like the cotangent, linear in it, finite, the same under
    `jit` and `vmap`, and the expected function of Hessian and cotangent; its pairing is
    <lambda, dC/dy>, and so is its derivative with respect to what the cost reads; the
    hypergradient of a solved quadratic program is the one that follows, also with
    tasks; and if it reaches towers (`mlox.methods.reach`), that of three levels is
    right.

    Of a method with memory (`mlox.MethodWithMemory`) these are the laws without one;
    with one, its multiplier and its memory are finite, the memory is like the one
    before, and on a frozen problem the multiplier settles at the expected one.

    Args:
        method: A `mlox.Method`.
        expected: (H, v) -> lambda for the matrix H = dG/dy [n, n] and the cotangent v
            [n]: what the method claims. By default the exact multiplier,
            H^{-T} v; `lambda H, v: v` for `mlox.Implicit(mlox.Identity())` and
            `mlox.FiniteDifference()`. The optimizer is `optax.sgd(0.1)`, so that
            `lambda H, v: 0.1 * v` is that of `mlox.SAMA()`.
        tolerance: The relative error that multipliers and hypergradients may have.

    Raises:
        AssertionError: If a law does not hold: with its name, the figures, and the
            likely cause.
        TypeError: If `method` has not the two functions of a method.
        ValueError: If `tolerance` is not a positive number.

    Example:
        >>> import mlox, mlox.testing
        >>> mlox.testing.check_method(
        ...     mlox.Implicit(mlox.Identity()), expected=lambda H, v: v)
        >>> try:
        ...     mlox.testing.check_method(mlox.FiniteDifference())
        ... except AssertionError as error:
        ...     print("expected function of Hessian" in str(error))
        True
    """
    check("check_method: method", method, METHOD)
    check("check_method: tolerance", tolerance, POSITIVE)
    with law(
        method,
        "a method is hashable and compares by value",
        "Use a frozen dataclass of plain numbers: every other one is traced again.",
    ):
        require_value(method)
    for dtype in float_types():
        _check_multiplier(method, dtype, tolerance)
        _check_pairing(method, dtype, tolerance)
    _check_transformations(method, tolerance)
    systems = [System.DEFINITE]
    systems += [s for s in (System.SYMMETRIC, System.GENERAL) if s <= reach(method)]
    for system in systems:
        _check_value(method, system, expected, tolerance)
    check_memory(
        method, _answer(System.DEFINITE, jnp.result_type(float)), expected, tolerance
    )
    check_graphs(method, expected, RATE, tolerance)


def _answer(system: System, dtype: Any) -> Answer:
    """Return the answer of a quadratic cost, with the matrix of a class."""
    product = multiply(make_matrix(system, dtype))
    transposed = multiply(make_matrix(system, dtype).T)

    def update(v: PyTree) -> PyTree:
        return jax.tree.map(lambda x: -RATE * x, v)

    return Answer(
        point=make_tree(1, dtype),
        residual=product,
        system=system,
        pull_update=update,
        linearized=product,
        pull_step=lambda v: jax.tree.map(jnp.add, v, transposed(update(v))),
    )


def _check_multiplier(method: Any, dtype: Any, tolerance: float) -> None:
    answer = _answer(System.DEFINITE, dtype)
    first, second = make_tree(2, dtype), make_tree(3, dtype)
    multiplier = lambda v: call_multiplier(method, answer, v, None)
    with law(
        method,
        f"the multiplier is a pytree like the cotangent, in {dtype}",
        "Each leaf of lambda has shape and dtype of that of the cotangent.",
    ):
        found = multiplier(first)
        require_like(found[0], first)
        require_report(found[2])
    x, y = found[0], multiplier(second)[0]
    with law(
        method,
        "the multiplier is linear in the cotangent",
        "Lambda must not depend on the norm or the sign of the cotangent; normalize "
        "in the pairing, or divide the norm out again.",
    ):
        both = jax.tree.map(lambda x, y: x - 3 * y, first, second)
        summed = jax.tree.map(lambda x, y: x - 3 * y, x, y)
        require_close(multiplier(both)[0], summed, 4 * tolerance)
        small = multiplier(jax.tree.map(lambda x: 2.0**-20 * x, first))[0]
        require_close(jax.tree.map(lambda x: 2.0**20 * x, small), x, tolerance)
    with law(
        method,
        "the multiplier of a zero cotangent is zero",
        "Guard each quotient whose denominator becomes zero with the cotangent.",
    ):
        zero = jax.tree.map(jnp.zeros_like, first)
        found = multiplier(zero)
        require_finite(found)
        require_close(found[0], zero, 0.0)
    with law(
        method,
        "the multiplier is a function of its arguments alone",
        "Keep no state in the method: under jit it would be that of the first trace.",
    ):
        require_close(multiplier(first)[0], x, 0.0)


def _check_pairing(method: Any, dtype: Any, tolerance: float) -> None:
    product = multiply(make_matrix(System.DEFINITE, dtype))
    point, direction = make_tree(1, dtype), make_tree(2, dtype)

    def cost(y: PyTree, x: jax.Array) -> jax.Array:
        flat = lambda tree: jnp.concatenate(list(map(jnp.ravel, jax.tree.leaves(tree))))
        return 0.5 * jnp.vdot(flat(y), flat(product(y))) + jnp.sum(
            jnp.sin(x * flat(y)) + 0.1 * flat(y) ** 4
        )

    def pairing(x: jax.Array, direction: PyTree) -> jax.Array:
        return method.pairing(lambda y: cost(y, x), point, direction)

    def exact(x: jax.Array, direction: PyTree) -> jax.Array:
        return jax.jvp(lambda y: cost(y, x), (point,), (direction,))[1]

    x = jnp.asarray(0.7, dtype)
    # A difference of two costs in float32 has about three digits.
    tolerance = max(tolerance, 2e-2 if dtype == jnp.float32 else 0.0)
    with law(
        method,
        f"the pairing is <lambda, dC/dy>, in {dtype}",
        "Its sign, its length (divide by the step), or the point at which it is taken.",
    ):
        require_close(pairing(x, direction), exact(x, direction), tolerance)
    with law(
        method,
        "the derivative of the pairing is that of <lambda, dC/dy>",
        "Differentiate through the cost: no stop_gradient, and no value that is not "
        "traced.",
    ):
        found, right = (jax.grad(f)(x, direction) for f in (pairing, exact))
        require_close(found, right, tolerance)
    with law(
        method,
        "the pairing of a zero multiplier is zero, and so is its derivative",
        "Guard the quotient by the norm of the multiplier.",
    ):
        zero = jax.tree.map(jnp.zeros_like, direction)
        found = jax.value_and_grad(pairing)(x, zero)
        require_finite(found)
        require_close(found, (0.0, 0.0), 0.0)


def _check_transformations(method: Any, tolerance: float) -> None:
    dtype = jnp.result_type(float)
    answer = _answer(System.DEFINITE, dtype)
    trees = [make_tree(seed, dtype) for seed in range(3)]
    multiplier = lambda v: call_multiplier(method, answer, v, None)[0]
    expected = jax.tree.map(lambda *x: jnp.stack(x), *map(multiplier, trees))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *trees)
    with law(
        method,
        "the multiplier is the same under jit and vmap",
        "Let no Python `if` depend on arrays, and call no NumPy on them.",
    ):
        found = jax.jit(jax.vmap(multiplier))(stacked)
        require_close(found, expected, tolerance)


def _check_value(
    method: Any, system: System, expected: Inverse, tolerance: float
) -> None:
    dtype = jnp.result_type(float)
    v = make_tree(2, dtype)
    matrix, flat = make_matrix(system, dtype), ravel_pytree(v)[0]
    with law(
        method,
        "the multiplier is the expected function of Hessian and cotangent, on systems "
        f"of the class {system.name}",
        "Its sign, the Hessian in place of its transpose, or an approximation: pass "
        "what it is by expected=, and how well by tolerance=.",
    ):
        found = call_multiplier(method, _answer(system, dtype), v, None)[0]
        right = np.asarray(expected(matrix, flat))
        require_close(ravel_pytree(found)[0], right, tolerance)
