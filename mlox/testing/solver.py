"""The laws of linear solvers."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlox._utils.fields import Kind, check, instance_of, is_number, optional
from mlox._utils.types import PyTree
from mlox.solvers import Solver, System, linear_solve, serves
from mlox.testing.laws import (
    float_types,
    law,
    require,
    require_close,
    require_finite,
    require_like,
    require_report,
    require_value,
)
from mlox.testing.systems import (
    make_matrix,
    make_singular,
    make_tree,
    multiply,
    reorder,
    restore_order,
    solve_dense,
)

TOLERANCE = Kind(
    "a number > 0, or math.inf",
    lambda x: (is_number(x) and x > 0) or x == math.inf,
)
SYSTEM = optional(instance_of(System, "a mlox.System, e.g. mlox.System.DEFINITE"))
CLASSES = (System.DEFINITE, System.SYMMETRIC, System.GENERAL)


def check_solver(
    solver: Solver, *, tolerance: float = 1e-2, system: System | None = None
) -> None:
    """Check the laws of a solver on small systems of the classes that it serves.

    Its solutions are right within the tolerance, also from a guess, in float32 and (if
    enabled) float64, on pytrees in any order of their leaves, mapped and jitted;
    homogeneous in the right-hand side at any scale, and additive; finite for a zero
    right-hand side and for a singular system; its report tells no smaller residual than
    the true one; and `mlox.linear_solve` differentiates it twice. The systems have six
    unknowns, and eigenvalues of sizes between 0.5 and 1.5.

    Args:
        solver: A `mlox.Solver`: a function, or a value.
        tolerance: The relative error that its solutions may have; `math.inf` for one
            that is no solution, as that of `mlox.Identity`.
        system: The widest class of systems that it solves; None for that of
            `mlox.solvers.serves`.

    Raises:
        AssertionError: If a law does not hold: with its name, the figures, and the
            likely cause.
        TypeError: If `solver` is not a function, or `system` is no class of systems.
        ValueError: If `tolerance` is not a positive number.

    Example:
        >>> import mlox, mlox.testing
        >>> mlox.testing.check_solver(mlox.Identity(), tolerance=float("inf"))
        >>> try:
        ...     mlox.testing.check_solver(lambda matvec, b, guess=None: (-b, {}))
        ... except AssertionError as error:
        ...     print("breaks the law" in str(error))
        True
    """
    kind = Kind("a function (matvec, b, guess) -> (x, report)", callable, TypeError)
    check("check_solver: solver", solver, kind)
    check("check_solver: tolerance", tolerance, TOLERANCE)
    check("check_solver: system", system, SYSTEM)
    system = serves(solver) if system is None else system
    _check_value(solver)
    for dtype in float_types():
        _check_form(solver, dtype)
        _check_edges(solver, dtype)
        if tolerance < math.inf:
            for kind_of in CLASSES:
                if kind_of <= system:
                    _check_solution(solver, kind_of, dtype, tolerance)
        _check_scales(solver, dtype)
        _check_trees(solver, dtype)
    _check_transformations(solver)
    if tolerance < math.inf and system > System.NONE:
        _check_derivatives(solver, system, tolerance)


@functools.partial(jax.jit, static_argnums=0)
def _solve(solver: Any, matrix: jax.Array, b: PyTree, guess: PyTree) -> Any:
    return solver(multiply(matrix), b, guess)


def _check_value(solver: Any) -> None:
    with law(
        solver,
        "a solver is hashable and compares by value",
        "Use a frozen dataclass of plain numbers, or a function: every other one is "
        "traced again.",
    ):
        require_value(solver)


def _check_form(solver: Any, dtype: Any) -> None:
    b = make_tree(1, dtype)
    with law(
        solver,
        f"it returns a pytree like b and a dict of scalars, in {dtype}",
        "Return (x, report), and cast x to the dtype of each leaf of b.",
    ):
        found = _solve(solver, make_matrix(System.DEFINITE, dtype), b, None)
        require(isinstance(found, tuple) and len(found) == 2, f"found {type(found)}.")
        require_like(found[0], b)
        require_report(found[1])


def _check_edges(solver: Any, dtype: Any) -> None:
    b = make_tree(1, dtype)
    zero = jax.tree.map(jnp.zeros_like, b)
    with law(
        solver,
        "the solution of a zero right-hand side is zero",
        "Guard each quotient whose denominator becomes zero with b.",
    ):
        x, report = _solve(solver, make_matrix(System.DEFINITE, dtype), zero, None)
        require_finite((x, report))
        require_close(x, zero, 0.0)
    singular = make_singular(dtype)
    with law(
        solver,
        "the solution of a singular system that has one is finite",
        "Stop where a pivot or a curvature is zero, or add damping.",
    ):
        require_finite(_solve(solver, singular, multiply(singular)(b), None))


def _check_solution(solver: Any, system: System, dtype: Any, tolerance: float) -> None:
    matrix, b = make_matrix(system, dtype), make_tree(1, dtype)
    expected = solve_dense(matrix, b)
    what = f"systems of the class {system.name} are solved in {dtype}"
    cause = (
        "The iteration is wrong (a sign, A in place of its transpose), or too short: "
        "then raise its iterations or pass tolerance=; or the class of its systems is "
        "narrower: register it with mlox.solvers.serves."
    )
    with law(solver, what, cause):
        x, report = _solve(solver, matrix, b, None)
        require_close(x, expected, tolerance)
    with law(
        solver,
        "its report tells no smaller residual than the true one",
        "Report |b - A x| / |b|, or leave 'residual' out.",
    ):
        if "residual" in report:
            true = _residual(matrix, x, b)
            floor = 100 * float(jnp.finfo(dtype).eps)
            require(
                float(report["residual"]) >= 0.1 * true - floor,
                f"reported {float(report['residual']):.2g}, true {true:.2g}.",
            )
    for name, guess in (("any guess", make_tree(2, dtype)), ("the solution", expected)):
        with law(
            solver,
            f"it solves from {name} as its guess",
            "Start at x = guess with the residual b - A x; direct solvers ignore it.",
        ):
            require_close(_solve(solver, matrix, b, guess)[0], expected, tolerance)
    other = make_tree(3, dtype)
    with law(
        solver,
        "the solution is additive in the right-hand side",
        "A tolerance that is absolute, or a decision that depends on b.",
    ):
        both = jax.tree.map(lambda x, y: x + 3 * y, b, other)
        y = _solve(solver, matrix, other, None)[0]
        summed = jax.tree.map(lambda x, y: x + 3 * y, x, y)
        found = _solve(solver, matrix, both, None)[0]
        require_close(found, summed, 4 * tolerance)


def _residual(matrix: jax.Array, x: PyTree, b: PyTree) -> float:
    rows = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(float)
        for tree in (x, b)
    ]
    r = rows[1] - np.asarray(matrix, float) @ rows[0]
    return float(np.linalg.norm(r) / np.linalg.norm(rows[1]))


def _check_scales(solver: Any, dtype: Any) -> None:
    matrix, b = make_matrix(System.DEFINITE, dtype), make_tree(1, dtype)
    x = _solve(solver, matrix, b, None)[0]
    for factor in (-2.0, 2.0**-50, 2.0**50):
        with law(
            solver,
            f"the solution of {factor:.3g} b is {factor:.3g} times that of b",
            "Measure tolerances relative to the norm of b, and in float32 scale b, "
            "whose squares underflow below 1e-19.",
        ):
            scaled = jax.tree.map(lambda leaf: factor * leaf, b)  # noqa: B023
            found = _solve(solver, matrix, scaled, None)[0]
            back = jax.tree.map(lambda leaf: leaf / factor, found)  # noqa: B023
            require_close(back, x, 1e3 * float(jnp.finfo(dtype).eps))


def _check_trees(solver: Any, dtype: Any) -> None:
    matrix, b = make_matrix(System.DEFINITE, dtype), make_tree(1, dtype)

    @jax.jit
    def permuted(b: PyTree) -> PyTree:
        product = lambda x: reorder(multiply(matrix)(restore_order(x)))
        return restore_order(solver(product, reorder(b), None)[0])

    with law(
        solver,
        "the order of the leaves of b does not matter",
        "Inner products and norms go over all leaves, once each.",
    ):
        expected = _solve(solver, matrix, b, None)[0]
        require_close(permuted(b), expected, 1e3 * float(jnp.finfo(dtype).eps))


def _check_transformations(solver: Any) -> None:
    dtype = jnp.result_type(float)
    matrix = make_matrix(System.DEFINITE, dtype)
    trees = [make_tree(seed, dtype) for seed in range(3)]
    near = 1e4 * float(jnp.finfo(dtype).eps)
    with law(
        solver,
        "the solution is the same with and without jit",
        "Keep no state between calls, and let no Python `if` depend on arrays.",
    ):
        jitted = _solve(solver, matrix, trees[1], None)[0]
        require_close(solver(multiply(matrix), trees[1], None)[0], jitted, near)
        require_close(solver(multiply(matrix), trees[1], None)[0], jitted, near)
    with law(
        solver,
        "mapped systems have the solutions of single ones",
        "Under vmap a loop runs until all systems are done: a final state must stay.",
    ):
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *trees)
        run = functools.partial(_solve, solver, matrix, guess=None)
        found = jax.vmap(lambda b: run(b)[0])(stacked)
        singles = [run(b)[0] for b in trees]
        require_close(found, jax.tree.map(lambda *x: jnp.stack(x), *singles), near)


def _check_derivatives(solver: Any, system: System, tolerance: float) -> None:
    dtype = jnp.result_type(float)
    matrix, b = make_matrix(system, dtype), make_tree(1, dtype)
    symmetric = system <= System.SYMMETRIC

    def value(t: jax.Array, exact: bool) -> jax.Array:
        if exact:
            flat = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(b)])
            return jnp.sum(jnp.linalg.solve((1 + t) * matrix, flat) ** 2)
        product = multiply((1 + t) * matrix)
        x = linear_solve(solver, product, b, symmetric=symmetric)[0]
        return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(x)), jnp.zeros(()))

    t = jnp.zeros((), dtype)
    for order, derivative in (
        ("first", jax.grad(value)),
        ("second", jax.grad(jax.grad(value))),
    ):
        with law(
            solver,
            f"linear_solve has its {order} derivative",
            "Products are called with traced vectors of any values; x must depend on "
            "nothing but the products and b.",
        ):
            run = jax.jit(derivative, static_argnums=1)
            require_close(run(t, False), run(t, True), 10 * tolerance)
