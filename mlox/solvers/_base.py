"""The protocol of linear solvers, and the classes of systems that they solve."""

import enum
import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax

from mlox._utils.types import Tree

MatVec: TypeAlias = Callable[[Tree], Tree]
"""A linear map from pytrees of one structure to pytrees of the same structure."""

Info: TypeAlias = dict[str, jax.Array]
"""The report of a solver: named scalars, see `Solver`."""


class Solver(Protocol):
    """Solve `A x = b`, with `A` given by its products with vectors.

    Any callable of this form is a solver: a function, or a value with `__call__`. A
    solver in a method must be hashable and compare by value (a frozen dataclass of
    plain numbers), or every new one is traced again. It need not be differentiable,
    see `linear_solve`. It runs under `jit` and `vmap`, so it must not raise because of
    values, and must return finite numbers if `b` is zero.

    Example:
        >>> from mlox.solvers import linear_solve
        >>> def jacobi(matvec, b, guess=None):
        ...     x = b if guess is None else guess
        ...     for _ in range(30):
        ...         x = x + 0.4 * (b - matvec(x))
        ...     return x, {}
        >>> x, info = linear_solve(jacobi, lambda v: 2.0 * v, jax.numpy.ones(2))
        >>> print(x)
        [0.5 0.5]
    """

    def __call__(
        self, matvec: MatVec, b: Tree, guess: Tree | None = None, /
    ) -> tuple[Tree, Info]:
        """Return an approximate solution and a report.

        Args:
            matvec: the linear map `x -> A x`, on pytrees like `b`.
            b: the right-hand side, a pytree of real floating arrays of any shapes
                and dtypes.
            guess: the first iterate, a pytree like `b`; zero if None. Direct solvers
                ignore it.

        Returns:
            `x`, a pytree like `b`, and a dict of scalar arrays. If they need no further
            product, it has `"residual"`, the norm of `b - A x` relative to that of `b`
            (0 if `b` is zero), and `"iterations"`, the number of products with `A`,
            int32.
        """
        ...


class System(enum.IntEnum):
    """Classes of linear systems, each within the next.

    Example:
        >>> System.DEFINITE < System.GENERAL
        True
    """

    NONE = 0
    """Nothing is solved."""
    DEFINITE = 1
    """Symmetric positive definite."""
    SYMMETRIC = 2
    """Symmetric, of either sign."""
    GENERAL = 3
    """Square and regular."""


@functools.singledispatch
def serves(solver: Any) -> System:
    """Return the widest class of systems that a solver can solve.

    A solver that is not registered is taken to solve all of them. To register one:
    `@serves.register` on a function whose argument is annotated with its class.

    Args:
        solver: a `Solver`.

    Returns:
        A `System`: `GENERAL` unless registered.

    Example:
        >>> from mlox.solvers import CG, GMRES
        >>> serves(CG()).name, serves(GMRES()).name
        ('DEFINITE', 'GENERAL')
    """
    del solver
    return System.GENERAL
