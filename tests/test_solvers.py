"""Laws of the linear solvers: every solver on every system on every pytree."""

import dataclasses
import functools
import itertools
import math

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

import mlox
from mlox._utils.convolutions import has_convolution, should_unroll
from mlox._utils.tree import add_scaled, epsilon, link_leaves, ravel, vdot
from mlox.solvers import (
    CG,
    GMRES,
    MINRES,
    BiCGStab,
    Dense,
    Identity,
    Neumann,
    Nystrom,
    Richardson,
    System,
    linear_solve,
    serves,
)

TREES = {
    "scalar": jnp.array(0.7),
    "nested": {"a": {"b": jnp.array([1.0, -2.0])}, "d": jnp.array([0.5, -1.0, -1.0])},
    "mixed": (jnp.arange(4.0).reshape(2, 2) - 1, [jnp.array(2.0), jnp.ones((1, 2))]),
}
SOLVERS = {
    "CG": CG(iterations=15),
    "Neumann": Neumann(iterations=400, step=0.18),
    "GMRES": GMRES(),
    "BiCGStab": BiCGStab(),
    "Dense": Dense(),
}
KINDS = {"definite": 1, "symmetric": 2, "general": 3}
SERVED = [
    (name, kind)
    for name, solver in SOLVERS.items()
    for kind, system in KINDS.items()
    if serves(solver) >= system
]


def matrix(kind: str, n: int, seed: int = 0) -> np.ndarray:
    """Return a well-conditioned matrix."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    values = np.linspace(1.0, 5.0, n)
    if kind == "definite":
        return Q * values @ Q.T
    if kind == "symmetric":
        return Q * (values * (-1) ** np.arange(1, n + 1)) @ Q.T
    return Q * values @ Q.T + 0.7 * np.triu(rng.normal(size=(n, n)), 1)


def product(A, like):
    """Return the map x -> A x on pytrees."""
    unravel = ravel_pytree(like)[1]
    return lambda x: unravel(A @ ravel_pytree(x)[0])


# Most of the time of these tests is spent in the compiler.
quick = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


@functools.partial(quick, static_argnames=("solver",))
def solve(solver, A, b, guess=None):
    return solver(product(A, b), b, guess)


def flat(tree) -> np.ndarray:
    return np.asarray(ravel(tree)[0])


def relative(x, y) -> float:
    return float(np.linalg.norm(flat(x) - flat(y)) / np.linalg.norm(flat(y)))


# What is solved


@pytest.mark.parametrize("tree", ["scalar", "nested"])
@pytest.mark.parametrize(("name", "kind"), SERVED)
def test_solver_returns_the_solution(name, kind, tree):
    b = TREES[tree]
    A = matrix(kind, flat(b).size)
    x, info = solve(SOLVERS[name], A, b)
    chex.assert_trees_all_equal_shapes_and_dtypes(x, b)
    assert relative(x, np.linalg.solve(A, flat(b))) < 1e-10
    assert info.get("residual", 0.0) < 1e-10


@pytest.mark.parametrize(("name", "kind"), SERVED)
def test_solver_returns_the_damped_solution_from_any_guess(name, kind):
    b = TREES["mixed"]
    A = matrix(kind, 7)
    solver = dataclasses.replace(SOLVERS[name], damping=0.25)
    x, info = solve(solver, A, b, jax.tree.map(lambda leaf: 3.0 + leaf, b))
    assert relative(x, np.linalg.solve(A + 0.25 * np.eye(7), flat(b))) < 1e-10
    assert info.get("residual", 0.0) < 1e-10
    zero = jax.tree.map(jnp.zeros_like, b)
    x, info = solve(solver, A, zero, b)
    np.testing.assert_allclose(flat(x), np.zeros(7), atol=1e-10)
    assert info.get("residual", 0.0) == 0.0


@pytest.mark.parametrize("name", ["CG", "GMRES", "BiCGStab"])
def test_solver_returns_a_guess_that_is_the_solution(name):
    ones = jax.tree.map(jnp.ones_like, TREES["mixed"])
    solver = dataclasses.replace(SOLVERS[name], damping=0.25)
    x, info = solve(solver, 0.75 * np.eye(7), ones, ones)
    chex.assert_trees_all_equal(x, ones)
    assert info == {"residual": 0.0, "iterations": 1}


def textbook_cg(A, b, x, iterations):
    r = b - A @ x
    p = r
    for _ in range(iterations):
        alpha = r @ r / (p @ A @ p)
        x, r_next = x + alpha * p, r - alpha * A @ p
        p, r = r_next + (r_next @ r_next) / (r @ r) * p, r_next
    return x


@pytest.mark.parametrize(("iterations", "unroll"), [(2, True), (5, False)])
def test_cg_returns_the_textbook_iterate(iterations, unroll):
    b = TREES["mixed"]
    A = matrix("definite", 7)
    guess = jax.tree.map(jnp.ones_like, b)
    solver = CG(iterations, damping=0.1, unroll=unroll)
    x, info = solve(solver, A, b, guess)
    expected = textbook_cg(A + 0.1 * np.eye(7), flat(b), np.ones(7), iterations)
    np.testing.assert_allclose(flat(x), expected, rtol=1e-11)
    residual = np.linalg.norm(flat(b) - A @ expected - 0.1 * expected)
    np.testing.assert_allclose(info["residual"], residual / np.linalg.norm(flat(b)))
    assert info["iterations"] == iterations + 1


def test_cg_returns_the_textbook_iterate_at_negative_curvature():
    b = TREES["nested"]
    A = matrix("symmetric", 5)
    x, info = solve(CG(3), A, b)
    expected = textbook_cg(A, flat(b), np.zeros(5), 3)
    np.testing.assert_allclose(flat(x), expected)
    residual = np.linalg.norm(flat(b) - A @ expected) / np.linalg.norm(flat(b))
    np.testing.assert_allclose(info["residual"], residual)
    assert info["iterations"] == 3


@pytest.mark.parametrize("iterations", [1, 4])
def test_neumann_returns_the_partial_sum(iterations):
    b = TREES["nested"]
    A = matrix("general", 5)
    x, info = solve(Neumann(iterations, step=0.15, damping=0.2), A, b)
    M = np.eye(5) - 0.15 * (A + 0.2 * np.eye(5))
    terms = [np.linalg.matrix_power(M, i) @ flat(b) for i in range(iterations + 1)]
    np.testing.assert_allclose(flat(x), 0.15 * sum(terms), rtol=1e-12)
    shorter = 0.15 * sum(terms[:-1])
    residual = flat(b) - A @ shorter - 0.2 * shorter
    np.testing.assert_allclose(
        info["residual"], np.linalg.norm(residual) / np.linalg.norm(flat(b))
    )
    assert info["iterations"] == iterations


def test_richardson_from_zero_is_the_sum_of_neumann():
    b = TREES["nested"]
    A = matrix("general", 5)
    x, info = solve(Richardson(5, step=0.15, damping=0.2), A, b)
    y, expected = solve(Neumann(4, step=0.15, damping=0.2), A, b)
    chex.assert_trees_all_close(x, y, rtol=1e-13)
    chex.assert_trees_all_close(info, expected, rtol=1e-13)


def test_richardson_goes_on_from_its_guess():
    """Up to the order in which XLA sums a product inside and outside of a loop."""
    b = TREES["nested"]
    A = matrix("definite", 5)
    zero = jax.tree.map(jnp.zeros_like, b)
    run = lambda n, guess: solve(Richardson(n, 0.15), A, b, guess)
    x, info = run(7, zero)
    y = zero
    for _ in range(7):
        y, last = run(1, y)
    chex.assert_trees_all_close(x, y, rtol=1e-15)
    chex.assert_trees_all_close(last["residual"], info["residual"], rtol=1e-14)
    chex.assert_trees_all_close(x, run(7, None)[0], rtol=1e-15)
    assert (info["iterations"], last["iterations"]) == (7, 1)


def test_richardson_converges_from_any_guess():
    b = TREES["mixed"]
    A = matrix("definite", 7)
    solver = Richardson(400, step=0.18, damping=0.25)
    x, info = solve(solver, A, b, jax.tree.map(lambda leaf: 3.0 + leaf, b))
    assert relative(x, np.linalg.solve(A + 0.25 * np.eye(7), flat(b))) < 1e-10
    assert info["residual"] < 1e-10
    zero = jax.tree.map(jnp.zeros_like, b)
    x, info = solve(solver, A, zero, b)
    np.testing.assert_allclose(flat(x), np.zeros(7), atol=1e-10)
    assert info["residual"] == 0.0


def test_identity_returns_the_right_hand_side():
    b = TREES["nested"]
    x, info = Identity()(lambda x: 1 / 0, b, b)
    assert info == {}
    chex.assert_trees_all_equal(x, b)


def test_gmres_returns_the_minimizer_over_each_space():
    """One of six products goes to the guess, and one is left to the last cycle."""
    b = TREES["mixed"]
    A = matrix("general", 7)
    x = np.ones(7)
    for length in (2, 2, 1):
        r = flat(b) - A @ x
        K = np.stack([np.linalg.matrix_power(A, i) @ r for i in range(length)], 1)
        x = x + K @ np.linalg.lstsq(A @ K, r, rcond=None)[0]
    guess = jax.tree.map(jnp.ones_like, b)
    actual, info = solve(GMRES(iterations=6, restart=2), A, b, guess)
    np.testing.assert_allclose(flat(actual), x, rtol=1e-9)
    residual = np.linalg.norm(flat(b) - A @ x) / np.linalg.norm(flat(b))
    np.testing.assert_allclose(info["residual"], residual, rtol=1e-9)
    assert info["iterations"] == 6


def test_gmres_returns_the_solution_where_no_shorter_space_helps():
    shift = np.roll(np.eye(5), 1, axis=0)
    vector, unravel = ravel_pytree(TREES["nested"])
    b = np.eye(5)[0]
    for solver, residual in ((GMRES(iterations=4), 1.0), (GMRES(), 0.0)):
        x, info = solve(solver, shift, unravel(b.astype(vector.dtype)))
        np.testing.assert_allclose(info["residual"], residual, atol=1e-15)
    np.testing.assert_allclose(flat(x), shift.T @ b, atol=1e-14)


# Stopping


@pytest.mark.parametrize(
    ("solver", "most"),
    [
        (CG(25, tolerance=0.03), 7),
        (GMRES(25, tolerance=0.03), 7),
        pytest.param(MINRES(25, tolerance=0.03), 7, marks=pytest.mark.slow),
        (BiCGStab(25, tolerance=0.03), 14),
    ],
)
def test_solver_stops_at_its_tolerance(solver, most):
    b = jnp.arange(1.0, 9.0)
    A = matrix("definite", 8)
    x, info = solve(solver, A, b)
    true = np.linalg.norm(b - A @ x) / np.linalg.norm(b)
    np.testing.assert_allclose(info["residual"], true, rtol=1e-9)
    assert true <= 0.03
    assert info["iterations"] <= most


def test_cg_stops_no_sooner_than_its_tolerance():
    b = jnp.arange(1.0, 9.0)
    A = matrix("definite", 8)
    _, info = solve(CG(25, tolerance=0.03), A, b)
    before = int(info["iterations"]) - 1
    _, info = solve(CG(before, tolerance=0.03), A, b)
    assert info["residual"] > 0.03
    assert info["iterations"] == before


@pytest.mark.parametrize("A", [np.eye(5), np.zeros((5, 5))], ids=["regular", "zero"])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_solver_returns_zero_for_a_zero_right_hand_side(solver, A):
    b = jax.tree.map(jnp.zeros_like, TREES["nested"])
    x, info = solve(solver, A, b)
    chex.assert_trees_all_equal(x, b)
    assert info.get("residual", 0.0) == 0.0


@pytest.mark.parametrize(
    ("solver", "dtype"),
    [
        (CG(500), jnp.float32),
        (CG(500), jnp.float64),
        (CG(500, tolerance=1e-30), jnp.float32),
        (Neumann(500, step=0.18), jnp.float32),
        (GMRES(500, restart=2), jnp.float32),
        pytest.param(MINRES(500), jnp.float32, marks=pytest.mark.slow),
        (BiCGStab(500), jnp.float32),
    ],
    ids=repr,
)
def test_solver_returns_the_solution_far_past_convergence(solver, dtype):
    A = matrix("definite", 4).astype(dtype)
    b = jnp.arange(1.0, 5.0, dtype=dtype)
    x, info = solve(solver, A, b)
    assert x.dtype == dtype
    tolerance = 100 * jnp.finfo(dtype).eps
    assert relative(x, np.linalg.solve(A.astype(float), flat(b))) < tolerance
    assert 0 <= info["residual"] < tolerance
    most = {GMRES: 40, BiCGStab: 12}.get(type(solver), 500)
    assert info["iterations"] <= most


def test_cg_returns_finite_numbers_where_inner_products_underflow():
    """The residual falls to denormals, whose curvature underflows to zero."""
    A = np.diag([1e-3, 2e-3, 3e-3, 5e-3]).astype(np.float32)
    for scale in (1.0, 1e-12, 1e-18, 1e-22, 1e-38):
        b = scale * jnp.ones(4, jnp.float32)
        x, info = solve(CG(500), A, b)
        chex.assert_tree_all_finite((x, info))


@pytest.mark.parametrize(
    ("solver", "dtype"),
    [
        (CG(20), jnp.float32),
        (CG(20), jnp.float64),
        (GMRES(20), jnp.float32),
        (MINRES(20), jnp.float32),
        (BiCGStab(20), jnp.float32),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    ("A", "b"),
    [
        (np.diag([-1.0, -2.0]), [1.0, 1.0]),
        (np.diag([1.0, 0.0]), [1.0, 1.0]),
        (np.diag([1.0, 0.0]), [0.0, 1.0]),
        (np.diag([1.0, -1.0]), [1.0, 1.0]),
        ([[0.0, 1.0], [1.0, 0.0]], [1.0, 0.0]),
        ([[0.0, 1.0], [1.0, 0.0]], [1.0, 1e-20]),
        ([[0.0, 1.0], [1.0, 0.0]], [1e10, 1e-25]),
        ([[0.0, 1e10], [1e10, 0.0]], [1.0, 1e-20]),
        ([[1e-20, 1.0], [1.0, 0.0]], [1.0, 0.0]),
        ([[1e-20, 1e10], [1e10, 1.0]], [1.0, 0.0]),
        ([[1e-35, 1.0], [1.0, 1.0]], [1.0, 0.0]),
        ([[1e-20, 1e18], [1e18, 1e18]], [1.0, 0.0]),
        ([[0.0, 3.0], [0.0, 1.0]], [1e10, -1.0]),
        ([[-1.0, 0.0], [-1.0, 0.0]], [1e10, 1e15]),
        ([[0.0, 1.0], [-1.0, 0.0]], [1.0, 1.0]),
        (np.diag([1e-30, 1e-25]), [1.0, 1e10]),
        (np.diag([1e30, 1e-30]), [1.0, 1.0]),
        (np.eye(2), [1e30, 1e30]),
    ],
)
def test_solver_returns_finite_numbers_on_hard_systems(solver, A, b, dtype):
    x, info = solve(solver, jnp.asarray(A, dtype), jnp.asarray(b, dtype))
    chex.assert_tree_all_finite(x)
    if isinstance(solver, BiCGStab) and max(b) < 1e19:
        chex.assert_tree_all_finite(info)


def test_minres_makes_the_iterates_of_gmres_on_a_symmetric_system():
    A, b = matrix("symmetric", 7), TREES["mixed"]
    guess = jax.tree.map(jnp.ones_like, b)  # takes one of the products of GMRES
    found, info = solve(MINRES(4, damping=0.1), A, b, guess)
    expected, report = solve(GMRES(5, damping=0.1), A, b, guess)
    chex.assert_trees_all_close(found, expected, rtol=1e-10)
    chex.assert_trees_all_close(info, report, rtol=1e-10)


@pytest.mark.slow
def test_minres_solves_a_system_of_many_unknowns_in_few_vectors():
    rng = np.random.default_rng(0)
    values = rng.uniform(1.0, 3.0, 300) * np.where(rng.random(300) < 0.3, -1, 1)
    Q = np.linalg.qr(rng.normal(size=(300, 300)))[0]
    A, b = Q * values @ Q.T, jnp.asarray(rng.normal(size=300))
    x, info = solve(MINRES(200), A, b)
    assert relative(x, np.linalg.solve(A, b)) < 1e-12
    assert info["residual"] < 1e-13
    assert info["iterations"] < 100


def test_cg_stops_at_a_direction_without_curvature():
    x, info = solve(CG(20), jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(x, [0.0, 0.0])
    assert info == {"residual": 1.0, "iterations": 1}


def test_gmres_returns_a_small_solution_of_a_singular_system():
    A = np.diag([1.0, 2.0, 3.0, 4.0, 0.0])
    unravel = ravel_pytree(TREES["nested"])[1]
    inside = unravel(jnp.array([1.0, 2.0, 3.0, 4.0, 0.0]))
    x, _ = solve(GMRES(), A, inside)
    np.testing.assert_allclose(flat(x), [1.0, 1.0, 1.0, 1.0, 0.0], atol=1e-14)
    _, info = solve(GMRES(), A, unravel(jnp.ones(5)))
    np.testing.assert_allclose(info["residual"], 1 / np.sqrt(5))
    short = unravel(jnp.array([0.3, 0.7, 0.0, 0.0, 0.9]))
    x, info = solve(GMRES(), A, short)
    true = np.linalg.norm(flat(short) - A @ flat(x)) / np.linalg.norm(flat(short))
    np.testing.assert_allclose(info["residual"], true)
    np.testing.assert_allclose(flat(x)[:4], [0.3, 0.35, 0.0, 0.0], atol=1e-14)
    assert np.linalg.norm(flat(x)) < 10
    assert info["iterations"] == 3
    x, info = solve(GMRES(), np.zeros((5, 5)), short)
    np.testing.assert_array_equal(flat(x), np.zeros(5))
    assert info == {"residual": 1.0, "iterations": 1}


def test_gmres_reports_the_true_residual_of_a_singular_system():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        Q = np.linalg.qr(rng.normal(size=(40, 40)))[0]
        A = Q * np.repeat([1.0, 3.0, 10.0, 0.0], 10) @ Q.T
        b = jnp.asarray(rng.normal(size=40))
        x, info = solve(GMRES(), A, b)
        best = np.linalg.norm(b - A @ (np.linalg.pinv(A) @ b))
        true = np.linalg.norm(b - A @ x)
        assert true < 1.5 * best
        assert 0.9 < info["residual"] * np.linalg.norm(b) / true < 3


def test_dense_returns_the_solution_of_a_damped_singular_system():
    A = np.diag([1.0, 2.0, 3.0, 4.0, 0.0])
    unravel = ravel_pytree(TREES["nested"])[1]
    inside = unravel(jnp.array([1.0, 2.0, 3.0, 4.0, 0.0]))
    x, _ = solve(Dense(damping=1e-9), A, inside)
    np.testing.assert_allclose(flat(x), [1.0, 1.0, 1.0, 1.0, 0.0], atol=1e-8)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    ("A", "b", "x", "residual"),
    [
        (np.diag([1.0, 2.0, 0.0]), [1.0, 4.0, 0.0], [1.0, 2.0, 0.0], 0.0),
        (np.ones((3, 3)), [6.0, 6.0, 6.0], [2.0, 2.0, 2.0], 0.0),
        (np.eye(3, k=1), [3.0, 4.0, 0.0], [0.0, 3.0, 4.0], 0.0),
        (np.diag([1.0, 2.0, 0.0]), [0.0, 4.0, 3.0], [0.0, 2.0, 0.0], 0.6),
        (np.zeros((3, 3)), [0.0, 4.0, 3.0], [0.0, 0.0, 0.0], 1.0),
    ],
)
def test_dense_returns_the_shortest_solution_of_a_singular_system(
    A, b, x, residual, mapped
):
    """Under vmap beside a regular system, which keeps its own solution."""
    A, b = np.stack([A, 2 * np.eye(3)]), np.stack([b, np.ones(3)])
    run = functools.partial(solve, Dense())
    found, info = jax.vmap(run)(A, b) if mapped else run(A[0], b[0])
    found, info = jax.tree.map(np.atleast_1d, (found, info["residual"]))
    np.testing.assert_allclose(found.reshape(-1, 3)[0], x, atol=1e-14)
    np.testing.assert_allclose(info[0], residual, atol=1e-14)
    if mapped:
        np.testing.assert_array_equal(found[1], np.full(3, 0.5))


@pytest.mark.slow
def test_dense_has_derivatives_of_any_order():
    """Of 2/a; and of sum(x) for the shortest x of a singular, consistent system."""

    def regular(a):
        return Dense()(lambda x: a * x, jnp.ones(2))[0].sum()

    def singular(a):
        return Dense()(lambda x: a * x.sum() * jnp.ones(2), jnp.array([2.0, 2.0]))[0][0]

    points = jnp.array([1.0, 2.0])
    slopes = jax.jit(jax.vmap(jax.grad(regular)))(points)
    np.testing.assert_allclose(slopes, [-2.0, -0.5], rtol=1e-12)
    for curvature in (jax.jacfwd(jax.grad(regular)), jax.grad(jax.jacfwd(regular))):
        np.testing.assert_allclose(curvature(2.0), 0.5, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(jax.grad(singular))(points), [-1, -0.25])


# Scales


POWERS = (-60, -50, 0, 50, 60)


@pytest.mark.parametrize(
    ("solver", "kind"),
    [
        (CG(3), "definite"),
        pytest.param(CG(60), "definite", marks=pytest.mark.slow),
        pytest.param(CG(60, tolerance=1e-4), "definite", marks=pytest.mark.slow),
        (GMRES(), "general"),
        pytest.param(GMRES(6, restart=2), "general", marks=pytest.mark.slow),
        pytest.param(MINRES(12), "symmetric", marks=pytest.mark.slow),
        (BiCGStab(), "general"),
        pytest.param(Dense(), "general", marks=pytest.mark.slow),
        pytest.param(Neumann(20, step=0.18), "definite", marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_solver_scales_with_its_system_in_float32(solver, kind):
    """Costs in any units have the same answers: to the last bit, by powers of two."""
    A = matrix(kind, 7).astype(np.float32)
    b = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), TREES["mixed"])
    x, info = solve(solver, A, b)
    assert 0.0 < info["residual"] < 0.3
    for i, j in itertools.product(POWERS, POWERS):
        scaled = solver
        if isinstance(solver, Neumann):
            scaled = dataclasses.replace(solver, step=solver.step * 2.0**-i)
            if i != j:  # the step is static: a program each
                continue
        B, c = 2.0**i * A, jax.tree.map(lambda leaf, j=j: 2.0**j * leaf, b)
        y, report = solve(scaled, B, c)
        # Numbers below 2^-126 are zero.
        wide = flat(y).astype(float) * 2.0 ** (i - j)
        least = 2.0 ** (i - j - 126)
        np.testing.assert_allclose(wide, flat(x), rtol=1e-6, atol=least)
        chex.assert_trees_all_close(report, info, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CG", "GMRES", "BiCGStab", "Dense"])
def test_solver_reports_the_true_residual_at_any_scale(name):
    A = matrix("definite", 7).astype(np.float32)
    b = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), TREES["mixed"])
    scales = (1e-20, 1e-15, 1e15, 1e20)
    pairs = [(1.0, 1e-30), (1.0, 1e30), *((a, b) for a in scales for b in (1.0, a))]
    for B, c in pairs:
        system, rhs = B * A, jax.tree.map(lambda leaf, c=c: c * leaf, b)
        x, info = solve(SOLVERS[name], system, rhs)
        right, x = flat(rhs).astype(float), flat(x).astype(float)
        true = np.linalg.norm(right - system.astype(float) @ x) / np.linalg.norm(right)
        assert true < 1e-5
        np.testing.assert_allclose(info["residual"], true, atol=1e-5)


@pytest.mark.slow
def test_linear_solve_keeps_its_derivatives_at_small_scales():
    """In float32, mapped, and in reverse mode twice."""
    A = matrix("definite", 3).astype(np.float32)

    def solution(t, unit):
        product = lambda x: unit * t * (A @ x)
        b = unit * t**3 * jnp.arange(1, 4, dtype=jnp.float32)
        return linear_solve(CG(8), product, b, symmetric=True)[0][0]

    @quick
    def derivatives(t, unit):
        return jax.value_and_grad(jax.grad(solution))(t, unit)

    t, units = jnp.float32(0.7), jnp.array([1.0, 1e-15, 1e15], jnp.float32)
    one = derivatives(t, units[0])
    mapped = jax.vmap(derivatives, (None, 0))(t, units)
    for found, expected in zip(mapped, one, strict=True):
        np.testing.assert_allclose(found, np.full(3, expected), rtol=2e-5)


@pytest.mark.parametrize(
    "solver", [CG(), pytest.param(BiCGStab(), marks=pytest.mark.slow)], ids=repr
)
def test_hypergradient_is_that_of_the_same_costs_in_other_units(solver):
    def upper_loss(params, batch, ctx):
        return batch * jnp.sum((ctx.lower.params - 1.0) ** 2) + 0.0 * params.sum()

    def lower_loss(params, batch, ctx):
        weights = jnp.array([1.0, 2.0], jnp.float32)
        return batch * jnp.sum(weights * (params - ctx.upper.params**2) ** 2)

    start = jnp.array([0.5, 2.0], jnp.float32)
    parts = {"params": start, "tx": optax.sgd(0.0)}
    upper = mlox.Problem.create(name="upper", loss_fn=upper_loss, **parts)
    lower = mlox.Problem.create(
        name="lower", loss_fn=lower_loss, method=mlox.Implicit(solver), **parts
    )
    engine = mlox.Engine([upper, lower], {"upper": ["lower"]}, {"lower": ["upper"]})

    @quick
    def relative(unit):
        batches = {"upper": unit[None], "lower": unit[None]}
        return engine.hypergradient(engine.init(), batches, "upper")[1] / unit

    for unit in (1.0, 1e-20, 1e-15, 1e15):
        found = relative(jnp.asarray(unit, jnp.float32))
        np.testing.assert_allclose(found, [-1.0, 8.0], rtol=1e-5)


# Properties


PROPERTY = hypothesis.settings(max_examples=15)


@PROPERTY
@hypothesis.given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(list(KINDS)),
    power=st.integers(-25, 25),
)
def test_solution_scales_with_the_right_hand_side(seed, kind, power):
    """No solver holds a small right-hand side for zero."""
    A = matrix(kind, 5, seed)
    b = TREES["nested"]
    scale = 10.0**power
    for name, served in SERVED:
        if served == kind and name != "Neumann":
            x, _ = solve(SOLVERS[name], A, jax.tree.map(lambda leaf: scale * leaf, b))
            assert relative(flat(x) / scale, np.linalg.solve(A, flat(b))) < 1e-9


@PROPERTY
@hypothesis.given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-12, 1e-3, 1e9]))
def test_gmres_reports_the_true_residual(seed, scale):
    """Also for a matrix far from norm 1."""
    A = scale * np.random.default_rng(seed).normal(size=(5, 5))
    b = TREES["nested"]
    x, info = solve(GMRES(4), A, b)
    true = np.linalg.norm(flat(b) - A @ flat(x)) / np.linalg.norm(flat(b))
    np.testing.assert_allclose(info["residual"], true, atol=1e-9)
    assert true <= 1


@PROPERTY
@hypothesis.given(seed=st.integers(0, 10**6))
def test_cg_returns_the_minimizer_over_the_krylov_space(seed):
    A = matrix("definite", 6, seed)
    b = jnp.asarray(np.random.default_rng(seed).normal(size=6))
    x, _ = solve(CG(3), A, b)
    K = np.stack([np.linalg.matrix_power(A, i) @ b for i in range(3)], 1)
    expected = K @ np.linalg.solve(K.T @ A @ K, K.T @ b)
    np.testing.assert_allclose(x, expected, atol=1e-9)


# Transformations


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_returns_the_same_under_vmap(name):
    A = np.stack([matrix("definite", 5, seed) for seed in range(3)])
    b = jax.tree.map(
        lambda leaf: jnp.stack([leaf, 0 * leaf, 1 - leaf]), TREES["nested"]
    )
    solver = SOLVERS[name]
    x, info = jax.vmap(functools.partial(solve, solver))(A, b)
    for i in range(3):
        one, report = solve(solver, A[i], jax.tree.map(lambda leaf, i=i: leaf[i], b))
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], x)
        chex.assert_trees_all_close(mine, one, rtol=1e-9, atol=1e-12)
        assert abs(info["iterations"][i] - report["iterations"]) <= 2


def objective(solve_system, kind, moving):
    """Return a scalar function of t: of the solution of a system that t moves.

    `moving`: "matrix", all of it; "block", only the rows and columns of one leaf, and
    the function is linear in the solution; "leaf", one leaf of b, and only the other
    leaf of the solution is read.
    """
    like = {"a": jnp.array([1.0, -2.0]), "s": jnp.array(0.5)}
    fixed = matrix(kind, 3)
    block = np.diag([1.0, 1.0, 0.0]) if moving == "block" else np.ones((3, 3))

    def function(t):
        A = fixed + (0.0 if moving == "leaf" else 0.2 * jnp.sin(t)) * block
        b = {"a": like["a"], "s": jnp.cos(t) if moving == "leaf" else like["s"]}
        x = solve_system(A, b, jax.tree.map(lambda leaf: t * leaf, like))
        weights = jnp.array([1.0, 2.0])
        if moving == "block":
            return jnp.sum(x["a"] * weights) - x["s"]
        rest = 0.0 if moving == "leaf" else jnp.sin(x["s"])
        return jnp.sum(jnp.sin(x["a"]) * weights) - rest

    return function


def dense_system(A, b, guess):
    del guess
    vector, unravel = ravel_pytree(b)
    return unravel(jnp.linalg.solve(A, vector))


def orders(f):
    """Return the derivatives of f at 0.7: forward, reverse and all mixed seconds."""

    def jvp(f, t):
        return jax.jvp(f, (t,), (1.0,))

    @quick
    def derivatives(t):
        gradient, jvp_of_grad = jvp(jax.grad(f), t)
        tangent, grad_of_jvp = jax.value_and_grad(lambda t: jvp(f, t)[1])(t)
        grad_of_grad = jax.grad(jax.grad(f))(t)
        return gradient, tangent, jvp_of_grad, grad_of_jvp, grad_of_grad

    return derivatives(0.7)


@pytest.mark.parametrize(
    ("solver", "kind", "symmetric", "guessed", "moving"),
    [
        (CG(4), "definite", True, True, "block"),
        (Dense(), "general", False, True, "block"),
        (Dense(), "general", False, False, "leaf"),
    ],
)
def test_linear_solve_has_derivatives_of_every_order(
    solver, kind, symmetric, guessed, moving
):
    def system(A, b, guess):
        guess = guess if guessed else None
        return linear_solve(solver, product(A, b), b, guess, symmetric=symmetric)[0]

    actual = orders(objective(system, kind, moving))
    expected = orders(objective(dense_system, kind, moving))
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("solver", "kind", "symmetric"),
    [
        (CG(9, tolerance=1e-14), "definite", True),
        (Neumann(300, step=0.18), "definite", True),
        (GMRES(), "general", False),
    ],
    ids=repr,
)
def test_linear_solve_gradient_equals_central_differences(solver, kind, symmetric):
    def system(A, b, guess):
        return linear_solve(solver, product(A, b), b, guess, symmetric=symmetric)[0]

    f = objective(system, kind, "matrix")
    value, gradient = quick(jax.value_and_grad(f))(0.7)
    dense = objective(dense_system, kind, "matrix")
    difference = (dense(0.7 + 1e-5) - dense(0.7 - 1e-5)) / 2e-5
    np.testing.assert_allclose(value, dense(0.7), rtol=1e-9)
    np.testing.assert_allclose(gradient, difference, rtol=1e-8, atol=1e-10)


def test_linear_solve_has_derivatives_inside_scan_vmap_and_checkpoint():
    A = matrix("definite", 3)

    def solution(t, dense):
        b = {"a": t * jnp.ones(2), "s": jnp.sin(t)}
        if dense:
            return jnp.sum(jnp.linalg.solve(A * (1 + t**2), ravel_pytree(b)[0]))
        x, info = linear_solve(CG(8), product(A * (1 + t**2), b), b, b, symmetric=True)
        return jnp.sum(ravel_pytree(x)[0]) + info["residual"]

    def function(dense):
        step = jax.checkpoint(lambda t: t + solution(t, dense))
        final = lambda t: lax.scan(lambda t, _: (step(t), None), t, None, length=3)[0]
        return quick(jax.vmap(jax.grad(final)))(jnp.array([0.3, 0.6]))

    np.testing.assert_allclose(function(False), function(True), rtol=1e-9)


def test_linear_solve_starts_derivatives_at_zero_for_any_guess():
    A = matrix("definite", 5)
    b, db, guess = jnp.ones(5), jnp.arange(5.0), 100 * jnp.ones(5)
    solver = CG(2)

    def solution(b):
        return linear_solve(solver, lambda x: A @ x, b, guess, symmetric=True)[0]

    @quick
    def derivatives(b, db):
        _, pullback = jax.vjp(solution, b)
        return *jax.jvp(solution, (b,), (db,)), *pullback(db)

    x, dx, cotangent = derivatives(b, db)
    np.testing.assert_allclose(x, solve(solver, A, b, guess)[0])
    expected, _ = solve(solver, A, db)
    np.testing.assert_allclose(dx, expected)
    np.testing.assert_allclose(cotangent, expected)


@pytest.mark.parametrize("symmetric", [True, False])
def test_linear_solve_casts_its_guess_to_the_dtypes_of_b(symmetric):
    A, b, guess = matrix("definite", 3), jnp.arange(3.0), jnp.arange(3)
    solve = lambda guess: linear_solve(
        GMRES(3), lambda x: A @ x, b, guess, symmetric=symmetric
    )[0]
    chex.assert_trees_all_equal(solve(guess), solve(guess.astype(b.dtype)))


def test_identity_has_the_derivative_of_the_identity():
    def f(a):
        return linear_solve(Identity(), lambda x: a * x, 3 * a)[0]

    assert jax.grad(f)(2.0) == 3.0


def test_linear_solve_accepts_a_plain_function():
    def richardson(matvec, b, guess=None):
        x = b if guess is None else guess
        return lax.fori_loop(0, 300, lambda _, x: x + 0.15 * (b - matvec(x)), x), {}

    A = matrix("general", 4)
    assert serves(richardson) is System.GENERAL

    def total(scale, guess=None):
        solution = linear_solve(
            richardson, lambda x: scale * (A @ x), jnp.ones(4), guess
        )[0]
        return jnp.sum(solution)

    expected = np.sum(np.linalg.solve(A, np.ones(4)))
    np.testing.assert_allclose(total(1.0), expected)
    np.testing.assert_allclose(total(1.0, jnp.ones(4)), expected)
    np.testing.assert_allclose(jax.grad(total)(1.0), -expected)


# Reports, values, types


@pytest.mark.parametrize(
    ("solver", "guessed", "products"),
    [
        (CG(3), False, 3),
        (CG(3), True, 4),
        (CG(3, tolerance=1e-9), False, 3),
        (Neumann(3, 0.5), False, 3),
        (Neumann(3, 0.5), True, 3),
        (Neumann(3), False, 13),
        (Richardson(3, 0.5), False, 2),
        (Richardson(3, 0.5), True, 3),
        (Richardson(3), True, 13),
        (GMRES(3), False, 3),
        (GMRES(3), True, 3),
        (GMRES(1), True, 1),
        (GMRES(4, restart=2), False, 4),
        (MINRES(3), False, 3),
        (MINRES(3), True, 4),
        (BiCGStab(2), False, 4),
        (BiCGStab(2), True, 5),
        (Identity(), True, 0),
    ],
    ids=repr,
)
def test_solver_makes_no_needless_product(solver, guessed, products):
    """A product that is made once in a loop that is written out is made once."""
    b = TREES["mixed"]
    calls = []

    def matvec(x):
        calls.append(x)
        return product(np.eye(7), b)(x)

    if solver != Identity():
        solver = dataclasses.replace(solver, unroll=True)
    jax.eval_shape(lambda b: solver(matvec, b, b if guessed else None), b)
    assert len(calls) == products


def test_cg_makes_no_product_after_its_end():
    solver = CG(50, tolerance=1e-3)
    made = []

    def matvec(x):
        jax.debug.callback(lambda: made.append(1))
        return jnp.array([1.0, 2.0, 3.0]) * x

    _, info = quick(lambda b: solver(matvec, b))(jnp.ones(3))
    jax.effects_barrier()
    assert len(made) == info["iterations"] < 50


@pytest.mark.parametrize(("solver", "products"), [(CG(3), 4), (BiCGStab(2), 5)])
def test_solver_reports_the_true_residual(solver, products):
    b = TREES["mixed"]
    A = matrix("general", 7)
    x, info = solve(solver, A, b, jax.tree.map(jnp.ones_like, b))
    true = np.linalg.norm(flat(b) - A @ flat(x)) / np.linalg.norm(flat(b))
    np.testing.assert_allclose(info["residual"], true)
    assert info["residual"].shape == ()
    assert info["iterations"] == products
    assert info["iterations"].dtype == jnp.int32


def test_dense_reports_the_number_of_columns():
    _, info = solve(Dense(), matrix("general", 7), TREES["mixed"])
    assert info["iterations"] == 7


def test_gmres_returns_the_guess_without_a_product_left():
    x, info = solve(GMRES(1), 2 * np.eye(2), jnp.ones(2), jnp.array([1.0, 0.5]))
    np.testing.assert_array_equal(x, [1.0, 0.5])
    np.testing.assert_allclose(info["residual"], 1 / np.sqrt(2))


CLASSES = [CG, Neumann, Richardson, Nystrom, GMRES, MINRES, BiCGStab, Dense, Identity]


@pytest.mark.parametrize("solver", CLASSES)
def test_solver_is_frozen_hashable_and_compares_by_value(solver):
    assert solver() == solver()
    assert hash(solver()) == hash(solver())
    if solver is not Identity:
        other = solver(damping=0.5)
        assert solver() != other
        with pytest.raises(dataclasses.FrozenInstanceError):
            other.damping = 1.0


def test_linear_solve_does_not_retrace_for_equal_solvers():
    @functools.partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=2)
    def run(solver, b):
        return linear_solve(solver, lambda x: 2 * x, b)[0]

    for solver in (CG(3), CG(iterations=3), CG(3, damping=0.0), CG(4)):
        run(solver, jnp.ones(2))


def test_serves_returns_the_registered_system():
    expected = {
        CG: 1,
        Neumann: 1,
        Richardson: 1,
        Nystrom: 1,
        Identity: 0,
        GMRES: 3,
        MINRES: 2,
        BiCGStab: 3,
        Dense: 3,
    }
    assert {solver: serves(solver()) for solver in CLASSES} == expected

    class Mine:
        pass

    assert serves(Mine()) is System.GENERAL
    serves.register(Mine, lambda solver: System.SYMMETRIC)
    assert serves(Mine()) is System.SYMMETRIC


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_keeps_the_dtypes_of_leaves(name):
    """In a tree of all of them, and of Python numbers."""
    dtypes = {"h": jnp.bfloat16, "f": jnp.float32, "d": jnp.float64}
    b = {key: jnp.ones(2, dtype) for key, dtype in dtypes.items()} | {"s": 1.0}
    solver = SOLVERS[name]
    if name == "Neumann":
        solver = Neumann(iterations=30, step=0.4)

    @quick
    def run(b):
        def matvec(x):
            return {key: (1.5 + (key > "e")) * leaf for key, leaf in x.items()}

        return solver(matvec, jax.tree.map(jnp.asarray, b))[0]

    x = run(b)
    assert {key: x[key].dtype for key in dtypes} == dtypes
    wide = jax.tree.map(lambda leaf: leaf.astype(float), x)
    assert relative(wide, 1 / np.array([1.5, 1.5, 2.5, 2.5, 2.5, 2.5, 2.5])) < 1e-2


# Cost


def test_cg_costs_no_more_than_a_handwritten_cg():
    n = 4000

    def handwritten(d, b):
        def body(_, state):
            x, r, p, rr = state
            Ap = jax.tree.map(jnp.multiply, d, p)
            alpha = rr / dot(p, Ap)
            x = jax.tree.map(lambda x, p: x + alpha * p, x, p)
            r = jax.tree.map(lambda r, q: r - alpha * q, r, Ap)
            rr, beta = dot(r, r), dot(r, r) / rr
            return x, r, jax.tree.map(lambda r, p: r + beta * p, r, p), rr

        def dot(x, y):
            return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, x, y)))

        x = jax.tree.map(jnp.zeros_like, b)
        return lax.fori_loop(0, 5, body, (x, b, b, dot(b, b)))[0]

    def ours(d, b):
        matvec = functools.partial(jax.tree.map, jnp.multiply, d)
        return linear_solve(CG(5), matvec, b, symmetric=True)[0]

    d = (jnp.linspace(1.0, 2.0, n), jnp.array(3.0))
    b = (jnp.ones(n), jnp.array(1.0))
    cost, expected = (
        jax.jit(f).lower(d, b).compile().cost_analysis()["flops"]
        for f in (ours, handwritten)
    )
    # b is read for its size, and scaled, and so is the solution; and p is selected.
    assert cost < expected + 6 * n + 400


# Convolutions


def blur(x):
    """Multiply by a definite matrix: a convolution with a symmetric kernel."""
    kernel = jnp.array([[0.0, 0.2, 0.1], [0.2, 1.5, 0.2], [0.1, 0.2, 0.0]])
    return lax.conv_general_dilated(x, kernel[None, None], (1, 1), "SAME")


IMAGE = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 4, 4)))


custom_jvp_blur = jax.custom_jvp(blur)
custom_jvp_blur.defjvp(lambda x, dx: (blur(*x), blur(*dx)))
custom_vjp_blur = jax.custom_vjp(blur)
custom_vjp_blur.defvjp(lambda x: (blur(x), None), lambda _, y: (blur(y),))

CONVOLUTIONS = {
    "plain": blur,
    "jit": jax.jit(blur),
    "remat": jax.checkpoint(blur),
    "custom_jvp": custom_jvp_blur,
    "custom_vjp": custom_vjp_blur,
    "scan": lambda x: lax.scan(lambda x, _: (blur(x), None), x, None, length=2)[0],
    "while": lambda x: lax.while_loop(lambda x: x[0, 0, 0, 0] < 0, blur, x),
    "cond": lambda x: lax.cond(x[0, 0, 0, 0] > 0, lambda x: x, jax.jit(blur), x),
    "linear_solve": lambda x: linear_solve(CG(2), blur, x, symmetric=True)[0],
    "vmap of grad": jax.vmap(jax.grad(lambda x: jnp.sum(blur(x[None]) ** 2))),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_has_convolution_returns_true_at_any_depth(name):
    assert has_convolution(jax.make_jaxpr(CONVOLUTIONS[name])(IMAGE))
    assert should_unroll(CONVOLUTIONS[name], IMAGE) == (jax.default_backend() == "cpu")


def test_has_convolution_returns_false_without_one():
    def f(x):
        return lax.fori_loop(0, 3, lambda _, x: jax.jit(jnp.sin)(x @ x), x)

    assert not has_convolution(
        jax.make_jaxpr(jax.grad(lambda x: f(x).sum()))(jnp.eye(2))
    )
    assert not should_unroll(f, jnp.eye(2))


ITERATIVE = [
    CG(2),
    CG(3, tolerance=0.2),
    Neumann(2, step=0.4),
    GMRES(2),
]


@pytest.mark.parametrize("solver", ITERATIVE, ids=repr)
def test_solver_unrolls_loops_with_a_convolution_on_cpu(solver):
    def run(solver):
        compiled = quick(lambda b: solver(blur, b)).lower(IMAGE).compile()
        nothing, report = compiled(jnp.zeros_like(IMAGE))
        np.testing.assert_array_equal(nothing, jnp.zeros_like(IMAGE))
        assert report["residual"] == 0.0
        return compiled.as_text().count(" while("), *compiled(IMAGE)

    whiles, x, info = run(solver)
    assert (whiles == 0) == (jax.default_backend() == "cpu")
    whiles, expected, report = run(dataclasses.replace(solver, unroll=False))
    assert whiles > 0
    chex.assert_trees_all_close(x, expected, rtol=1e-10)
    assert info["iterations"] == report["iterations"]
    np.testing.assert_allclose(info["residual"], report["residual"], rtol=1e-8)


# Arithmetic


def test_vdot_accumulates_low_precision_in_float32():
    x = {"a": jnp.ones(3000, jnp.bfloat16), "b": jnp.ones((), jnp.float16)}
    assert vdot(x, x) == 3001.0
    assert vdot(x, x).dtype == jnp.float32
    assert vdot(jnp.ones(2), jnp.ones(2)).dtype == jnp.float64


def test_add_scaled_keeps_the_dtype_of_each_leaf():
    x = (jnp.ones(2, jnp.bfloat16), jnp.ones(()))
    y = add_scaled(x, jnp.float32(2.0), x)
    assert [leaf.dtype for leaf in y] == [jnp.bfloat16, jnp.float64]
    np.testing.assert_array_equal(flat(y), 3.0)


def test_epsilon_returns_that_of_the_coarsest_leaf():
    assert epsilon((jnp.ones(1), jnp.ones(1, jnp.float32))) == np.finfo(np.float32).eps
    assert epsilon(()) == 0.0


def test_link_leaves_keeps_values_and_links_every_leaf():
    x = (jnp.ones(2), {"s": jnp.array(3.0, jnp.float32)})
    y = link_leaves(x)
    assert y[1]["s"].dtype == jnp.float32
    chex.assert_trees_all_equal(y, x)
    gradient = jax.grad(lambda x: link_leaves(x)[1]["s"], allow_int=False)(x)
    np.testing.assert_array_equal(flat(gradient), [0.0, 0.0, 1.0])
    alone = jnp.ones(2)
    assert link_leaves(alone) is alone


# Errors


BAD = {
    "iterations": ("a positive int", [0, -1, True, 2.0, None]),
    "step": ("a finite number > 0 or None", [0.0, -1, math.inf]),
    "rank": ("an int, 0 or more", [-1, True, 2.0, None]),
    "seed": ("an int, 0 or more", [-1, True, 2.0, None]),
    "preconditioner": (
        "a preconditioner such as mlox.Nystrom\\(\\) or None",
        [Nystrom, CG(), lambda matvec, b: b],
    ),
    "tolerance": ("a finite number >= 0", [-1, math.nan]),
    "damping": ("a finite number >= 0", [-0.1, math.nan, "0.1", np.ones(())]),
    "restart": ("a positive int or None", [0, True]),
    "unroll": ("True, False or None", [0, 1, "no"]),
}


@pytest.mark.parametrize(
    ("solver", "name"),
    [(solver, f.name) for solver in CLASSES for f in dataclasses.fields(solver)],
)
def test_solver_raises_for_a_bad_field(solver, name):
    expected, values = BAD[name]
    if solver is Nystrom and name == "damping":
        expected, values = "a finite number > 0", [0.0, *values]
    for value in values:
        message = rf"{solver.__name__}: {name} is .*; expected {expected}\."
        with pytest.raises(ValueError, match=message):
            solver(**{name: value})


def test_solver_raises_for_a_traced_field():
    message = "damping is .*hashed and compared.*cannot hold an array or a traced value"
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda d: CG(damping=d))(1.0)


@pytest.mark.parametrize(
    ("b", "guess", "message"),
    [
        ((jnp.ones(2, complex),), None, r"b\[0\] has dtype complex128"),
        ((jnp.ones(2),), [jnp.ones(2)], "guess differs from b: .*, expected .*like b"),
    ],
    ids=["complex", "another structure"],
)
def test_linear_solve_raises_for_a_bad_system(b, guess, message):
    with pytest.raises(ValueError, match=message):
        linear_solve(CG(), lambda x: x, b, guess)
