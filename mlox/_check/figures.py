"""Figures: all that a check measures, as data; diagnoses read nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlox._check.kinds import is_approximate
from mlox._check.losses import Edge
from mlox._check.updates import Updates
from mlox._check.vectors import Distance
from mlox.methods import follows_steps

# From this relative error on, something is wrong. Lowers lag while they are trained.
WRONG, LAGGING = 0.05, 0.1


@dataclass(frozen=True)
class Lower:
    """What is known of one answer.

    Attributes:
        name: The problem.
        method: Its method.
        unrolled: Whether its inner loop is differentiated.
        top: Whether its method solves the system of its block.
        definite: Whether that system should be positive definite.
        steps: The steps of its window.
        residual: The relative residual that its solver reports, or None.
        iterations: The products that its solver reports, or None.
        eigenvalues: The smallest and the largest eigenvalue of its Hessian, or None.
        distance: How far the answer is from the solved one, relative to its norm.
        restarts: Whether its loop starts at a `reset` that is differentiated.
        starts: The uppers that its `reset` reads.
        steered: The neighbours that its optimizer reads by `hyperparams`.
        waits: How many more steps those above wait for it.
        updates: What its optimizer does, or None.
        stateful: Whether it has a mutable state, such as running statistics.
    """

    name: str
    method: Any
    unrolled: bool
    top: bool
    definite: bool
    steps: int
    residual: float | None = None
    iterations: float | None = None
    eigenvalues: tuple[float, float] | None = None
    distance: float | None = None
    restarts: bool = False
    starts: tuple[str, ...] = ()
    steered: tuple[str, ...] = ()
    waits: int = 0
    updates: Updates | None = None
    stateful: bool = False

    @property
    def rests_elsewhere(self) -> bool:
        """Whether its method knows that the optimizer rests elsewhere than the loss.

        Its hypergradient is then not that of references, whose answers solve the loss.
        """
        drifts = self.updates is not None and self.updates.drifts
        exact = not is_approximate(self.method)
        return drifts and exact and follows_steps(self.method)


@dataclass(frozen=True)
class Differences:
    """The steps from the configured hypergradient to the true one; None: not measured.

    Attributes:
        precision: Configured, in its own precision and in float64 (or float32).
        solver: Configured, and solved exactly at the same answer.
        coupling: Direct and total coupling, both solved exactly.
        lower: At the answer and at the solved answer, over all samples of the window.
        loss: At the solved answer, and differences of the loss with re-solved answers.
        window: Configured, and unrolled through the whole window.
        program: Unrolled, and differences of the loss of the very program.
        indirect: As `solver` or `window`, for the indirect part of the hypergradient.
        steps: The errors of `program` for steps of different lengths, short ones first.
    """

    precision: Distance | None = None
    solver: Distance | None = None
    coupling: Distance | None = None
    lower: Distance | None = None
    loss: Distance | None = None
    window: Distance | None = None
    program: Distance | None = None
    indirect: Distance | None = None
    steps: tuple[float, ...] = ()


@dataclass(frozen=True)
class Figures:
    """What a check has measured.

    Attributes:
        name: The upper.
        finite: Whether the configured hypergradient is finite.
        lowers: Its answers.
        differences: How its hypergradient differs from references.
        edges: How each cost depends on each of the parameters that it may read.
        flat: The edges (reader, read) where a loss reads what has no derivative in its
            program.
        jumps: The largest relative jump of each cost's value along a line.
        kinks: The same of its gradient; measured where something is off.
        descent: How far the solved answers lower the cost of each one, relative to it.
        changes: How far the value of each cost changes when its loss is traced again.
        mixing: How far the examples of the upper's batch depend on each other.
        custom: The problems whose losses have a derivative of the user's own.
        narrow: The problems whose losses compute in 16 bits.
        sampled: The problems whose losses hold a `mlox.magic_box`.
        direct: Whether coupling is direct.
        held: The pairs (reader, read) of constants that the hypergradient holds fixed,
            but a program that is run again would not.
        double: Whether the run is in float64 itself; then `differences.precision` says
            how it would be in float32.
        single: Whether nothing of the run is in 16 bits.
        gap: The estimate of how far the loss would move if the answers were solved.
        loss: The loss of the upper.
        stationarity: The norm of the residual of the answers.
        remaining: The same after Newton's method: about 0 if it has converged.
        noise: The spread of the hypergradient over batches and keys, relative to it.
        metasmoothness: See `mlox._check.training`.
    """

    name: str
    finite: bool
    lowers: tuple[Lower, ...]
    differences: Differences
    edges: tuple[Edge, ...] = ()
    flat: frozenset[tuple[str, str]] = frozenset()
    jumps: Mapping[str, float] = field(default_factory=dict)
    kinks: Mapping[str, float] = field(default_factory=dict)
    descent: Mapping[str, float] = field(default_factory=dict)
    changes: Mapping[str, float] = field(default_factory=dict)
    mixing: float = 0.0
    custom: frozenset[str] = frozenset()
    narrow: frozenset[str] = frozenset()
    sampled: frozenset[str] = frozenset()
    direct: bool = False
    held: tuple[tuple[str, str], ...] = ()
    double: bool = False
    single: bool = False
    gap: float | None = None
    loss: float | None = None
    stationarity: float | None = None
    remaining: float | None = None
    noise: float | None = None
    metasmoothness: float | None = None

    @property
    def converged(self) -> bool:
        """Whether Newton's method has solved the answers."""
        if self.remaining is None or self.stationarity is None:
            return True
        return self.remaining <= 1e-4 * max(self.stationarity, 1e-8)

    @property
    def unseen(self) -> frozenset[str]:
        """The problems whose losses have derivatives that their values do not show.

        In 16 bits a loss is a staircase. The value of a loss of samples holds them, or
        jumps where others are drawn; `mlox.magic_box` differentiates the expectation.
        """
        return self.narrow | self.sampled

    @property
    def unsolved(self) -> bool:
        """Whether unsolved answers are off by more than batches and keys are."""
        found = self.differences.lower
        return found is not None and not found.error < max(LAGGING, self.noise or 0.0)
