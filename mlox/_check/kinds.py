"""Kinds of methods: what may be expected of each."""

from __future__ import annotations

from typing import Any

from mlox.methods import (
    SAMA,
    SOBA,
    Detached,
    FiniteDifference,
    FixedPoint,
    GaussNewton,
    Implicit,
    Iterative,
)
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
    serves,
)


def is_approximate(method: Any) -> bool:
    """Return whether a method leaves something out by definition.

    Such a hypergradient has a direction, but no length.

    Example:
        >>> import mlox
        >>> is_approximate(mlox.SAMA()), is_approximate(mlox.Implicit())
        (True, False)
    """
    if isinstance(method, Implicit):
        return method.solver is not None and serves(method.solver) is System.NONE
    if isinstance(method, FixedPoint):
        return method.iterations == 0
    return isinstance(method, FiniteDifference | GaussNewton | SAMA | Detached)


def name_omission(method: Any) -> str:
    """Return what an approximate method leaves out.

    Example:
        >>> import mlox
        >>> name_omission(mlox.GaussNewton())
        'a part of the Hessian'
    """
    return (
        "a part of the Hessian"
        if isinstance(method, GaussNewton)
        else "the inverse Hessian"
    )


def is_foreign(method: Any) -> bool:
    """Return whether a method, or its solver, is the user's own.

    Example:
        >>> import mlox
        >>> is_foreign(mlox.Implicit(lambda matvec, b, guess: (b, {})))
        True
    """
    if isinstance(method, Implicit):
        iterative = CG | GMRES | MINRES | BiCGStab | Neumann | Richardson
        known = iterative | Dense | Identity | Nystrom | None
        return not isinstance(method.solver, known)
    direct = FiniteDifference | GaussNewton | SAMA
    own = direct | FixedPoint | SOBA | Detached | Iterative
    return not isinstance(method, own)


def needs_definite(method: Any) -> bool:
    """Return whether a method takes a matrix to be positive definite.

    Example:
        >>> import mlox
        >>> needs_definite(mlox.Implicit()), needs_definite(mlox.Implicit(mlox.GMRES()))
        (True, False)
    """
    if not isinstance(method, Implicit):
        return isinstance(method, SOBA)
    solver = method.solver
    return solver is None or serves(solver) is System.DEFINITE


def fixed_step(method: Any) -> Neumann | Richardson | SOBA | None:
    """Return the part of a method that makes steps of a fixed size, if any.

    Example:
        >>> import mlox
        >>> fixed_step(mlox.Implicit(mlox.Neumann(step=0.1)))
        Neumann(iterations=10, step=0.1)
    """
    part = method.solver if isinstance(method, Implicit) else method
    return part if isinstance(part, Neumann | Richardson | SOBA) else None
