"""Solvers of other libraries, wrapped as the how-to on methods and solvers does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.sparse import linalg

import mlox
import mlox.testing


def scipy_cg(matvec, b, guess=None):
    return linalg.cg(matvec, b, guess, tol=1e-6, maxiter=50)[0], {}


def in_units(solve, matvec, b, guess):
    """Solve for b over its norm: tolerances that are absolute become relative."""
    size = optax.tree.norm(b)
    unit = jnp.where(size > 0, size, 1)
    guess = optax.tree.zeros_like(b) if guess is None else guess
    scaled = (optax.tree.scale(1 / unit, tree) for tree in (b, guess))
    return optax.tree.scale(unit, solve(matvec, *scaled)), {}


def scipy_gmres(matvec, b, guess=None):
    solve = lambda A, b, x0: linalg.gmres(A, b, x0, tol=1e-6)[0]
    return in_units(solve, matvec, b, guess)


def scipy_bicgstab(matvec, b, guess=None):
    solve = lambda A, b, x0: linalg.bicgstab(A, b, x0, tol=1e-6, maxiter=50)[0]
    return in_units(solve, matvec, b, guess)


@dataclasses.dataclass(frozen=True)
class Lineax:
    """A solver of lineax, by its name and options: `lineax.CG(rtol, atol)`."""

    name: str
    options: tuple[float, ...] = ()

    def __call__(self, matvec, b, guess=None):
        lineax = pytest.importorskip("lineax")
        solver = getattr(lineax, self.name)(*self.options)
        definite = self.name == "CG"
        tags = lineax.positive_semidefinite_tag if definite else ()

        def solve(A, b, x0):
            shapes = jax.eval_shape(lambda: b)
            operator = lineax.FunctionLinearOperator(A, shapes, tags)
            options = {"y0": x0} if self.options else {}
            return lineax.linear_solve(
                operator, b, solver, options=options, throw=False
            ).value

        return in_units(solve, matvec, b, guess)


SOLVERS = {
    "scipy CG": (scipy_cg, mlox.System.DEFINITE),
    "scipy GMRES": (scipy_gmres, mlox.System.GENERAL),
    "scipy BiCGStab": (scipy_bicgstab, mlox.System.GENERAL),
    "lineax CG": (Lineax("CG", (1e-6, 0.0)), mlox.System.DEFINITE),
    "lineax GMRES": (Lineax("GMRES", (1e-6, 0.0)), mlox.System.GENERAL),
    "lineax LU": (Lineax("LU"), mlox.System.GENERAL),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_foreign_solver_keeps_the_laws(name):
    if name.startswith("lineax"):
        pytest.importorskip("lineax")
    solver, system = SOLVERS[name]
    mlox.testing.check_solver(solver, system=system)


@pytest.mark.parametrize(
    "name", ["scipy CG", pytest.param("lineax CG", marks=pytest.mark.slow)]
)
def test_foreign_solver_is_differentiated_in_reverse_mode(name):
    """It has a loop of unknown length; `linear_solve` differentiates around it."""
    if name.startswith("lineax"):
        pytest.importorskip("lineax")
    b = {"a": jnp.array([1.0, 2.0]), "s": jnp.array(3.0)}

    def total(t):
        product = lambda x: jax.tree.map(lambda leaf: t * leaf, x)
        x, _ = mlox.linear_solve(SOLVERS[name][0], product, b, symmetric=True)
        return optax.tree.sum(x)

    np.testing.assert_allclose(jax.jit(jax.grad(total))(2.0), -1.5)
    np.testing.assert_allclose(jax.jit(jax.grad(jax.grad(total)))(2.0), 1.5)
