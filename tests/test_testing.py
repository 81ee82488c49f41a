"""The laws of `mlox.testing`: mlox's own values keep them, and wrong ones are named."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
import mlox.testing

SLOW = pytest.mark.slow


def identity(hessian, v):
    return v


def rate(hessian, v):
    return 0.1 * v


def show(value):
    """Return an id without an address, by which workers would differ."""
    if isinstance(value, dict):
        return "-".join(getattr(x, "__name__", repr(x)) for x in value.values())
    return repr(value)


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (mlox.Identity(), {"tolerance": math.inf}),
        pytest.param(mlox.CG(6), {}, marks=SLOW),
        pytest.param(mlox.CG(2), {"tolerance": math.inf}, marks=SLOW),
        pytest.param(mlox.GMRES(), {}, marks=SLOW),
        pytest.param(mlox.MINRES(), {}, marks=SLOW),
        pytest.param(mlox.BiCGStab(), {}, marks=SLOW),
        pytest.param(mlox.Dense(), {}, marks=SLOW),
        pytest.param(mlox.Neumann(20), {}, marks=SLOW),
        pytest.param(mlox.Richardson(20), {}, marks=SLOW),
        pytest.param(mlox.Nystrom(6, damping=1e-3), {}, marks=SLOW),
        pytest.param(mlox.Nystrom(3), {"tolerance": math.inf}, marks=SLOW),
        pytest.param(mlox.CG(8, preconditioner=mlox.Nystrom(3)), {}, marks=SLOW),
    ],
    ids=repr,
)
def test_own_solvers_keep_the_laws(solver, options):
    mlox.testing.check_solver(solver, **options)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        pytest.param(mlox.SAMA(), {"expected": rate}, marks=SLOW),
        pytest.param(mlox.SAMA(epsilon=0.01), {"expected": rate}, marks=SLOW),
        pytest.param(mlox.FiniteDifference(), {"expected": identity}, marks=SLOW),
        pytest.param(
            mlox.Implicit(mlox.Identity()), {"expected": identity}, marks=SLOW
        ),
        pytest.param(mlox.Implicit(), {}, marks=SLOW),
        pytest.param(mlox.GaussNewton(), {}, marks=SLOW),
        pytest.param(mlox.Implicit(mlox.CG(6)), {}, marks=SLOW),
        pytest.param(mlox.Implicit(mlox.MINRES()), {}, marks=SLOW),
        pytest.param(mlox.Implicit(mlox.Dense()), {}, marks=SLOW),
        pytest.param(mlox.Implicit(mlox.GMRES()), {}, marks=SLOW),
        pytest.param(mlox.Implicit(mlox.Neumann(30)), {}, marks=SLOW),
        pytest.param(mlox.SOBA(step=0.5), {}, marks=SLOW),
        pytest.param(
            mlox.Implicit(mlox.Richardson(30), warm_start=True), {}, marks=SLOW
        ),
    ],
    ids=show,
)
def test_own_methods_keep_the_laws(method, options):
    mlox.testing.check_method(method, **options)


# Wrong solvers


def dense(matvec, b, guess=None):
    return mlox.Dense()(matvec, b)


def wrong_sign(matvec, b, guess=None):
    return jax.tree.map(lambda x: -x, dense(matvec, b)[0]), {}


def transposed(matvec, b, guess=None):
    transpose = jax.linear_transpose(matvec, b)
    return dense(lambda x: transpose(x)[0], b)


def normalized(matvec, b, guess=None):
    size = jnp.sqrt(optax.tree.vdot(b, b))
    return jax.tree.map(lambda x: x / size, dense(matvec, b)[0]), {}


def absolute_tolerance(matvec, b, guess=None):
    small = optax.tree.vdot(b, b) < 1e-12
    return jax.tree.map(lambda x: jnp.where(small, 0, x), dense(matvec, b)[0]), {}


def flat(matvec, b, guess=None):
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(b)]), {}


def in_float64(matvec, b, guess=None):
    return jax.tree.map(lambda x: x.astype(float), dense(matvec, b)[0]), {}


def false_report(matvec, b, guess=None):
    x = jax.tree.map(lambda x: 1.005 * x, dense(matvec, b)[0])
    return x, {"residual": jnp.zeros(())}


def adds_the_guess(matvec, b, guess=None):
    x = dense(matvec, b)[0]
    return (x if guess is None else jax.tree.map(jnp.add, x, guess)), {}


def one_leaf(matvec, b, guess=None):
    """Fit the step length on the first leaf only."""
    first = lambda tree: jax.tree.leaves(tree)[0]
    x, r = jax.tree.map(jnp.zeros_like, b), b
    for _ in range(3):
        Ar = matvec(r)
        length = jnp.sum(first(r)) / jnp.sum(first(Ar))
        x = jax.tree.map(lambda x, r: x + length * r, x, r)  # noqa: B023
        r = jax.tree.map(lambda r, q: r - length * q, r, Ar)  # noqa: B023
    return x, {}


def plain_lu(matvec, b, guess=None):
    vector, unravel = jax.flatten_util.ravel_pytree(b)
    product = lambda x: jax.flatten_util.ravel_pytree(matvec(unravel(x)))[0]
    matrix = jax.vmap(product, out_axes=1)(jnp.eye(len(vector), dtype=vector.dtype))
    x = jnp.linalg.inv(matrix.at[0].set(0.0)) @ vector
    return unravel(x), {}


@dataclasses.dataclass
class Unhashable:
    __hash__ = None

    def __call__(self, matvec, b, guess=None):
        return dense(matvec, b)


class ByIdentity:
    def __call__(self, matvec, b, guess=None):
        return dense(matvec, b)


WRONG_SOLVERS = [
    (wrong_sign, "systems of the class DEFINITE are solved", {}),
    (normalized, "zero right-hand side is zero", {}),
    (flat, "pytree like b", {}),
    (in_float64, "pytree like b.*float32", {}),
    (plain_lu, "zero right-hand side|singular system", {}),
    (false_report, "no smaller residual", {}),
    (adds_the_guess, "from any guess", {}),
    (absolute_tolerance, "times that of b", {"tolerance": math.inf}),
    (one_leaf, "order of the leaves|zero right-hand side", {"tolerance": math.inf}),
    (transposed, "systems of the class GENERAL are solved", {}),
    (Unhashable(), "hashable and compares by value", {}),
    (ByIdentity(), "hashable and compares by value", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "broken", "options"), WRONG_SOLVERS)
def test_check_solver_names_the_law_that_is_broken(solver, broken, options):
    with pytest.raises(AssertionError, match=rf"breaks the law that .*({broken})"):
        mlox.testing.check_solver(solver, **options)


# Wrong methods


@dataclasses.dataclass(frozen=True)
class Right:
    """The exact method, with room for faults."""

    def multiplier(self, answer, cotangent, guess=None):
        lam, _, report = mlox.Implicit(mlox.Dense()).multiplier(answer, cotangent)
        return lam, report

    def pairing(self, cost, point, multiplier):
        return jax.jvp(cost, (point,), (multiplier,))[1]


class WrongSign(Right):
    def multiplier(self, answer, cotangent, guess=None):
        lam, report = super().multiplier(answer, cotangent)
        return jax.tree.map(lambda x: -x, lam), report


class Nonlinear(Right):
    def multiplier(self, answer, cotangent, guess=None):
        lam, report = super().multiplier(answer, cotangent)
        size = jnp.sqrt(optax.tree.vdot(cotangent, cotangent))
        return jax.tree.map(lambda x: x / size, lam), report


class NanAtZero(Right):
    def multiplier(self, answer, cotangent, guess=None):
        lam, report = super().multiplier(answer, cotangent)
        size = optax.tree.vdot(cotangent, cotangent)
        return jax.tree.map(lambda x: x * (size / size), lam), report


class WrongStructure(Right):
    def multiplier(self, answer, cotangent, guess=None):
        lam, report = super().multiplier(answer, cotangent)
        return jax.tree.leaves(lam), report


class NoReport(Right):
    def multiplier(self, answer, cotangent, guess=None):
        return super().multiplier(answer, cotangent)[0]


class VectorReport(Right):
    def multiplier(self, answer, cotangent, guess=None):
        return super().multiplier(answer, cotangent)[0], {"residual": jnp.zeros(3)}


class Wide(Right):
    def multiplier(self, answer, cotangent, guess=None):
        lam, report = super().multiplier(answer, cotangent)
        return jax.tree.map(lambda x: x.astype(float), lam), report


class Doubled(Right):
    def pairing(self, cost, point, multiplier):
        return 2 * super().pairing(cost, point, multiplier)


class Cut(Right):
    def pairing(self, cost, point, multiplier):
        return jax.lax.stop_gradient(super().pairing(cost, point, multiplier))


class NumPy(Right):
    def multiplier(self, answer, cotangent, guess=None):
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), cotangent), {}


CALLS = []


class Remembers(Right):
    def multiplier(self, answer, cotangent, guess=None):
        CALLS.append(0)
        factor = 1.0 + 1e-3 * len(CALLS)
        return jax.tree.map(lambda x: factor * x, cotangent), {}


class Unscaled(Right):
    """Differences without the norm of the multiplier."""

    def pairing(self, cost, point, multiplier):
        size = jnp.sqrt(optax.tree.vdot(multiplier, multiplier))
        step = 0.01 / size
        ends = [optax.tree.add_scale(point, s * step, multiplier) for s in (1, -1)]
        return (cost(ends[0]) - cost(ends[1])) / (2 * step)


class Mutable(Right):
    __hash__ = None


WRONG_METHODS = [
    (Mutable, "hashable and compares by value"),
    (WrongStructure, "pytree like the cotangent"),
    (NoReport, "pytree like the cotangent"),
    (VectorReport, "pytree like the cotangent"),
    (Wide, "pytree like the cotangent.*float32"),
    (Nonlinear, "linear in the cotangent"),
    (NanAtZero, "zero cotangent is zero"),
    (Remembers, "function of its arguments alone"),
    (Doubled, "pairing is <lambda, dC/dy>"),
    (Cut, "derivative of the pairing"),
    (Unscaled, "zero multiplier is zero"),
    (NumPy, "same under jit and vmap"),
    (WrongSign, "expected function of Hessian"),
]


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        pytest.param(*row, marks=[] if i < 5 else SLOW)
        for i, row in enumerate(WRONG_METHODS)
    ],
)
def test_check_method_names_the_law_that_is_broken(kind, broken):
    with pytest.raises(AssertionError, match=f"breaks the law that .*{broken}"):
        mlox.testing.check_method(kind())


@dataclasses.dataclass(frozen=True)
class Drifts(Right):
    """Keep twice what is right, and use it."""

    def start(self, point):
        return jax.tree.map(jnp.zeros_like, point)

    def multiplier(self, answer, cotangent, memory=None):
        lam, report = super().multiplier(answer, cotangent)
        if memory is None:
            return lam, None, report
        return memory, jax.tree.map(lambda x: 2 * x, lam), report


@dataclasses.dataclass(frozen=True)
class Widens(Drifts):
    """Keep another shape than before."""

    def multiplier(self, answer, cotangent, memory=None):
        lam, kept, report = super().multiplier(answer, cotangent, memory)
        return lam, jax.tree.map(lambda x: x[None], kept), report


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        (Drifts, "settles at the expected one"),
        (Widens, "memory after is like the memory before"),
    ],
)
@pytest.mark.slow
def test_check_method_names_the_law_of_memories_that_is_broken(kind, broken):
    with pytest.raises(AssertionError, match=f"breaks the law that .*{broken}"):
        mlox.testing.check_method(kind())


@pytest.mark.slow
def test_check_method_names_a_program_that_differs():
    """Laws that hold on one problem alone do not show what tasks break."""

    class OneTask(Right):
        def pairing(self, cost, point, multiplier):
            found = super().pairing(cost, point, multiplier)
            return found * (2.0 if "params" in type(point).__name__.lower() else 1.0)

        def multiplier(self, answer, cotangent, guess=None):
            lam, report = super().multiplier(answer, cotangent)
            factor = 1.0 if isinstance(cotangent, dict) else 2.0
            return jax.tree.map(lambda x: factor * x, lam), report

    with pytest.raises(AssertionError, match="hypergradient of a solved quadratic"):
        mlox.testing.check_method(OneTask())


@pytest.mark.slow
def test_check_method_names_a_breakdown_of_bicgstab():
    """On a tower the shadow residual may be orthogonal to what follows."""
    with pytest.raises(AssertionError, match="three levels is exact"):
        mlox.testing.check_method(mlox.Implicit(mlox.BiCGStab()))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: mlox.testing.check_method(mlox.Unrolled()), TypeError, "multiplier"),
        (lambda: mlox.testing.check_method(mlox.SAMA), TypeError, "method"),
        (
            lambda: mlox.testing.check_method(mlox.SAMA(), tolerance=0),
            ValueError,
            "tolerance is 0",
        ),
        (lambda: mlox.testing.check_solver(3), TypeError, "solver is 3"),
        (
            lambda: mlox.testing.check_solver(dense, tolerance="small"),
            ValueError,
            "tolerance is 'small'",
        ),
        (
            lambda: mlox.testing.check_solver(dense, system="definite"),
            TypeError,
            "system is 'definite'",
        ),
    ],
)
def test_checks_raise_for_bad_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()
