"""Laws of the sketch: as a solver, as a preconditioner, and of steps that are found."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from mlox.solvers import CG, Neumann, Nystrom, Richardson, linear_solve

LIKE = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(3), "c": jnp.zeros((2, 3))}  # 15 numbers
SIZE = 15

# Most of the time of these tests is spent in the compiler.
quick = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def matrix(values, seed=0):
    """Return the symmetric matrix with these eigenvalues."""
    draw = np.random.default_rng(seed).normal(size=(len(values), len(values)))
    Q = np.linalg.qr(draw)[0]
    return Q * np.asarray(values) @ Q.T


def right(dtype=float, size=SIZE):
    return np.random.default_rng(1).normal(size=size).astype(dtype)


@functools.partial(quick, static_argnames=("solver", "reverse"))
def solve(solver, A, b, guess=None, reverse=False):
    """Solve on the pytree `LIKE`, or with its leaves in the reverse order."""
    like = jax.tree.map(lambda leaf: leaf.astype(b.dtype), LIKE)
    unravel = ravel_pytree(like)[1]
    turn = lambda tree: tuple(jax.tree.leaves(tree)[::-1]) if reverse else tree
    back = lambda tree: dict(zip("cba", tree, strict=True)) if reverse else tree

    def product(x):
        return turn(
            unravel(jnp.matmul(A, ravel_pytree(back(x))[0], precision="highest"))
        )

    given = None if guess is None else turn(unravel(guess))
    x, info = solver(product, turn(unravel(b)), given)
    return ravel_pytree(back(x))[0], info


def inverse(solver, A):
    """Return the matrix of a solver, b -> x."""
    return np.asarray(jax.vmap(lambda b: solve(solver, A, b)[0])(jnp.eye(len(A)))).T


def relative(x, y):
    return np.linalg.norm(np.asarray(x, float) - y) / np.linalg.norm(y)


# The solver


@pytest.mark.parametrize(
    ("values", "damping"),
    [
        (np.linspace(1.0, 5.0, SIZE), 0.01),
        pytest.param(np.geomspace(1e-3, 1.0, SIZE), 1e-8, marks=pytest.mark.slow),
        pytest.param([0.0] * 5 + [1.0] * 10, 0.01, marks=pytest.mark.slow),
    ],
)
def test_nystrom_inverts_the_damped_matrix_at_full_rank(values, damping):
    A, b = matrix(values), right()
    x, info = solve(Nystrom(rank=99, damping=damping), A, b)
    assert relative(x, np.linalg.solve(A + damping * np.eye(SIZE), b)) < 1e-12
    assert info == {"iterations": SIZE}


@pytest.mark.parametrize(
    ("damping", "reverse"),
    [
        (1e-2, True),
        pytest.param(1e-2, False, marks=pytest.mark.slow),
        pytest.param(10.0, True, marks=pytest.mark.slow),
        pytest.param(1e-4, True, marks=pytest.mark.slow),
    ],
)
def test_nystrom_inverts_a_damped_matrix_of_its_rank(damping, reverse):
    """For any damping, in any order of the leaves, with some rank to spare as well."""
    A, b = matrix([3.0, 2.0, 0.5] + [0.0] * 12), right()
    expected = np.linalg.solve(A + damping * np.eye(SIZE), b)
    for rank in (3, 6):
        x, info = solve(Nystrom(rank, damping), A, b, reverse=reverse)
        assert relative(x, expected) < 1e-15 / damping + 1e-13
        assert info == {"iterations": rank}


@pytest.mark.slow
def test_nystrom_divides_what_it_misses_by_the_damping():
    """At one missed eigenvalue of five, 0.5, and a damping of 0.01: 50 times off."""
    A = np.zeros((SIZE, SIZE))
    A[:5, :5] = matrix([5e3, 4e3, 3e3, 2e3, 0.5])
    S = inverse(Nystrom(rank=4, damping=0.01), A)
    np.testing.assert_allclose(S, S.T, atol=1e-10)
    values = np.linalg.eigvalsh(S)
    np.testing.assert_allclose(values[4:], 100.0)  # 1 / damping, in all but four
    missed = np.linalg.eigh(A)[1][:, -5]
    assert missed @ S @ missed > 49 * (1 / 0.5)


@pytest.mark.slow
def test_nystrom_is_one_linear_map():
    """The draw depends on the seed alone, not on b."""
    A, b = matrix(np.geomspace(1.0, 1e-3, SIZE)), right()
    x, _ = solve(Nystrom(5), A, b)
    y, _ = solve(Nystrom(5), A, b[::-1])
    both, _ = solve(Nystrom(5), A, 3 * b + b[::-1])
    assert relative(both, 3 * x + y) < 1e-12
    assert relative(solve(Nystrom(5, seed=1), A, b)[0], x) > 1e-3


def test_nystrom_does_not_depend_on_the_order_and_names_of_leaves():
    """Below full rank, where the draw matters: that of a leaf is by its shape."""
    A, b = matrix(np.geomspace(1.0, 1e-3, 9)), right(size=9)

    @functools.partial(quick, static_argnums=(0, 1))
    def run(pack, unpack):
        product = lambda x: pack(A @ unpack(x))
        return unpack(Nystrom(4)(product, pack(b))[0])

    x = run(
        lambda v: {"a": v[:6].reshape(2, 3), "b": v[6:]},
        lambda x: jnp.concatenate([x["a"].ravel(), x["b"]]),
    )
    y = run(
        lambda v: (v[6:], [v[:6].reshape(2, 3)]),
        lambda x: jnp.concatenate([x[1][0].ravel(), x[0]]),
    )
    assert relative(x, np.asarray(y)) < 1e-12


HARD = {
    "zero": np.zeros(SIZE),
    "ill-conditioned": np.geomspace(1e-12, 1e6, SIZE),
    "indefinite": np.linspace(-1.0, 1.0, SIZE),
    "negative": -np.geomspace(1e-3, 1e3, SIZE),
    "huge": np.linspace(0.0, 1e30, SIZE),
    "tiny": np.linspace(0.0, 1e-30, SIZE),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize(
    "rank", [5, pytest.param(SIZE, marks=pytest.mark.slow)], ids=str
)
def test_nystrom_returns_finite_numbers_on_hard_systems(name, rank):
    """In float32; the solution of a zero right-hand side is zero."""
    A = matrix(HARD[name]).astype(np.float32)
    for b in (right(np.float32), np.zeros(SIZE, np.float32)):
        x, _ = solve(Nystrom(rank), A, b)
        assert np.linalg.norm(x.astype(float)) <= 110 * np.linalg.norm(b)
        solver = CG(20, preconditioner=Nystrom(rank))
        chex.assert_tree_all_finite(solve(solver, A, b))


def test_nystrom_takes_negative_eigenvalues_for_zero():
    values = np.linspace(-1.0, 1.0, SIZE)
    x, _ = solve(Nystrom(SIZE), matrix(values), right())
    positive = matrix(np.maximum(values, 0) + 0.01)
    assert relative(x, np.linalg.solve(positive, right())) < 1e-12


def test_nystrom_of_rank_0_divides_by_its_damping():
    x, info = solve(Nystrom(0, damping=0.5), matrix(np.ones(SIZE)), right())
    np.testing.assert_array_equal(x, 2 * right())
    assert info == {"iterations": 0}


@pytest.mark.slow
def test_linear_solve_differentiates_nystrom():
    """On a matrix of low rank, whose damped system it solves for every t."""
    low, b = jnp.asarray(matrix([3.0, 2.0, 0.5] + [0.0] * 12)), jnp.asarray(right())

    def by_sketch(t):
        product = lambda x: jnp.exp(t) * (low @ x)
        x, _ = linear_solve(Nystrom(4, 0.5), product, b, symmetric=True)
        return jnp.sum(jnp.sin(x))

    def by_hand(t):
        system = jnp.exp(t) * low + 0.5 * jnp.eye(SIZE)
        return jnp.sum(jnp.sin(jnp.linalg.solve(system, b)))

    for derivative in (jax.grad, jax.jacfwd, lambda f: jax.grad(jax.grad(f))):
        found, expected = (quick(derivative(f))(0.3) for f in (by_sketch, by_hand))
        np.testing.assert_allclose(found, expected, rtol=1e-10)


# The preconditioner

SPIKED = np.concatenate([np.geomspace(1e4, 1e2, 15), np.linspace(1.0, 2.0, 185)])


@functools.partial(quick, static_argnums=0)
def solve_vector(solver, A, b, guess=None):
    product = lambda x: jnp.matmul(A, x, precision="highest")
    return solver(product, b, guess)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(np.float64, 1e-10), pytest.param(np.float32, 1e-5, marks=pytest.mark.slow)],
)
def test_cg_needs_fewer_iterations_with_a_preconditioner(dtype, tolerance):
    """On 200 unknowns, of which 15 have large eigenvalues: 75 become 20."""
    A, b = matrix(SPIKED).astype(dtype), right(dtype, 200)
    plain, info = solve_vector(CG(300, tolerance), A, b)
    solver = CG(300, tolerance, preconditioner=Nystrom(20))
    x, report = solve_vector(solver, A, b)
    assert info["iterations"] > 70
    assert report["iterations"] - 20 < 25  # products beside those of the sketch
    assert relative(x, np.asarray(plain, float)) < 100 * tolerance
    true = np.linalg.norm(b - A.astype(float) @ np.asarray(x, float))
    rounding = 10 * np.finfo(dtype).eps * 1e4 * np.linalg.norm(x)
    assert report["residual"] <= tolerance
    assert true < 5 * tolerance * np.linalg.norm(b) + rounding
    guess = (np.asarray(plain) * 1.001).astype(dtype)
    x, again = solve_vector(solver, A, b, guess)
    assert relative(x, np.asarray(plain, float)) < 100 * tolerance
    assert again["iterations"] <= report["iterations"] + 1


@pytest.mark.parametrize(
    "solver", [CG(4), pytest.param(CG(9, 1e-4, 0.1), marks=pytest.mark.slow)], ids=repr
)
def test_cg_with_rank_0_is_cg_bit_for_bit(solver):
    A, b = matrix(np.linspace(1.0, 50.0, SIZE)), right()
    bare = dataclasses.replace(solver, preconditioner=Nystrom(rank=0))
    for guess in (None, np.ones(SIZE)):
        found, expected = (solve(s, A, b, guess) for s in (bare, solver))
        chex.assert_trees_all_equal(found, expected)


@pytest.mark.slow
def test_cg_solves_a_damped_system_of_low_rank_in_three_iterations():
    """The sketch is of A, and knows of the damping."""
    A, b = matrix(np.concatenate([SPIKED[:15], np.zeros(185)])), right(size=200)
    x, info = solve_vector(CG(50, 1e-10, 1.0, preconditioner=Nystrom(20)), A, b)
    assert relative(x, np.linalg.solve(A + np.eye(200), b)) < 1e-9
    assert info["iterations"] <= 23


@pytest.mark.slow
def test_cg_stays_at_the_solution_past_convergence_with_a_preconditioner():
    A = matrix(np.geomspace(1.0, 1e3, SIZE)).astype(np.float32)
    x, info = solve(CG(200, preconditioner=Nystrom(5)), A, right(np.float32))
    assert relative(x, np.linalg.solve(A.astype(float), right())) < 1e-3
    chex.assert_tree_all_finite(info)


# Steps that are found


@pytest.mark.parametrize("largest", [50.0, pytest.param(1e-3, marks=pytest.mark.slow)])
def test_found_step_is_just_below_one_over_the_largest_eigenvalue(largest):
    A, b = matrix(np.geomspace(0.1, 1.0, SIZE) * largest), right()
    x, info = solve(Richardson(iterations=1), A, b)
    steps = np.asarray(x) / b
    np.testing.assert_allclose(steps, steps[0])
    assert 0.85 < steps[0] * largest < 1.1
    assert info["iterations"] == 10


def test_found_step_makes_the_series_converge():
    """Where a step of 1 diverges; and it is a step that could have been given."""
    A, b = matrix(np.linspace(10.0, 50.0, SIZE)), right()
    expected = np.linalg.solve(A, b)
    step = float((solve(Richardson(1), A, b)[0] / b)[0])
    for kind in (Neumann, Richardson):
        x, info = solve(kind(150), A, b)
        assert relative(x, expected) < 1e-12
        given, report = solve(kind(150, step), A, b)
        assert relative(x, np.asarray(given)) < 1e-12
        assert info["iterations"] == report["iterations"] + 10
    assert solve(Neumann(20, step=1.0), A, b)[1]["residual"] > 1e10


@pytest.mark.slow
def test_found_step_is_safe_for_a_million_unknowns():
    """One eigenvalue of 1 and a million of 0.45, the worst case of its bound."""
    diagonal = jnp.full(10**6, 0.45).at[0].set(1.0)
    x, _ = Richardson(1)(lambda v: diagonal * v, jnp.ones(10**6))
    assert x[0] < 2.0
