"""Findings: what makes a hypergradient wrong, and the remedy."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Cause(enum.Enum):
    """The causes of a wrong hypergradient that `mlox.check` can tell apart.

    The value of a member says in a few words what it means.

    Example:
        >>> import mlox
        >>> print(mlox.Cause.LOWER_UNSOLVED.value)
        the lower has not reached its answer
    """

    LOWER_UNSOLVED = "the lower has not reached its answer"
    STEP_TOO_LARGE = "the step of the linear solver is too large"
    INDEFINITE = "the Hessian is not positive definite"
    EDGE_REVERSED = "the edges between two problems are the wrong way round"
    NOT_READ = "a loss does not read a neighbour that an edge declares"
    DERIVATIVE_CUT = "a derivative is cut, e.g. by stop_gradient"
    ADDITIVE = "the effect of an upper has no cross derivative"
    RANDOM_LOSS = "a loss draws random numbers of its own"
    BATCH_STATISTICS = "a loss normalizes over its own batch"
    LOW_PRECISION = "the precision of the numbers is too low"
    EPS_ROOT = "eps_root of the optimizer does not fit"
    TRUNCATED = "too few steps are differentiated"
    SOLVER_TOO_SHORT = "the solver has not solved its system"
    COUPLING = "direct coupling leaves out responses"
    CLIPPED = "clipping keeps the lower from its answer"
    PROJECTION = "project is not the projection onto a set"
    NOT_SMOOTH = "a loss is not smooth"
    WARMUP = "a problem waits while another one warms up"
    METHOD_WRONG = "the method does not return what its contract asks for"
    CUSTOM_RULE = "a custom derivative is not that of its function"
    CHAOTIC = "the inner loop is chaotic"
    NOT_FINITE = "the hypergradient is not finite"


@dataclass(frozen=True)
class Finding:
    """One cause of a wrong hypergradient.

    Attributes:
        cause: The cause.
        problem: The name of the problem where it is.
        text: What was found, with the figures.
        remedy: What to do.

    Example:
        >>> import mlox
        >>> finding = mlox.Finding(
        ...     mlox.Cause.TRUNCATED, "fit", "2 of 9 steps are differentiated.",
        ...     "Use mlox.Unrolled().")
        >>> print(finding)
        TRUNCATED in 'fit': 2 of 9 steps are differentiated. Use mlox.Unrolled().
    """

    cause: Cause
    problem: str
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.cause.name} in {self.problem!r}: {self.text} {self.remedy}"
