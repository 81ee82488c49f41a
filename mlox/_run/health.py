"""Screen the answers of a run: which ones lag behind what they should answer to.

Plain numbers, taken at log points from means that are there anyway.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mlox._utils.types import Columns

# The gap <lambda, G> of an answer is, to first order, what the upper's loss would lose
# if the lower were solved. With mini-batches lambda, the Hessian and G share a batch:
# the gap of a settled lower is noise with a *negative* mean, of the size of its spread,
# while that of a lower that lags has a positive mean. A window is therefore suspicious
# if its mean is
#
#     positive, more than SPREADS standard deviations over its cycles,
#     and more than SHARE of the upper's loss,
#
# and an answer if two windows in a row are, the first one of the run left out: at the
# start every lower lags. An error of the value need not be one of the gradient, and the
# loss has no natural zero (iMAML with 5 steps: a gap of 0.4 of the loss, a cosine of
# 0.99 to the true hypergradient). So one more solve has to confirm a suspicion: the
# Newton step that would solve the lower moves the answer by more than FAR times its
# norm; or by more than NEAR, and the hypergradient after it is another one. Neither can
# be judged alone: on one mini-batch they are as large in programs that train well. The
# figures are held against the programs of tests/training.py.
WINDOW = 8
SPREADS = 3.0
SHARE = 0.2
FAR = 1.5
NEAR = 0.2
COSINE = 0.5
RATIO = 3.0
RESIDUAL = 0.5
# Rounding leaves 1e-7 in float32; the products of a rule that is not the derivative of
# its function differ by percents.
ASYMMETRY = 1e-3


class Watch(NamedTuple):
    """What is known of an answer: plain numbers that can be written as JSON.

    Attributes:
        upper: The problem that is differentiated through the answer.
        lower: The top of the block of answers.
        cycles: The cycles of the present window, of at least `WINDOW` if complete.
        gap, square, loss, residual: Sums over these cycles: of the gap and its square,
            of the upper's loss and of the solver's residual.
        windows: The complete windows so far.
        streak: The last ones of them in a row that were suspicious.
        told: Whether it has been told that the answer lags.
        unsolved: Whether it has been told that its system is not solved.
        asymmetry: The largest mean asymmetry of its matrix over an interval.
        unsymmetric: Whether it has been told that the matrix is not symmetric.
    """

    upper: str
    lower: str
    cycles: int = 0
    gap: float = 0.0
    square: float = 0.0
    loss: float = 0.0
    residual: float = 0.0
    windows: int = 0
    streak: int = 0
    told: bool = False
    unsolved: bool = False
    asymmetry: float = 0.0
    unsymmetric: bool = False

    @property
    def edge(self) -> str:
        """The name of the answer in metrics."""
        return f"{self.upper}/{self.lower}"

    @property
    def is_complete(self) -> bool:
        """Whether the window has enough cycles to judge by."""
        return self.cycles >= WINDOW

    @property
    def spread(self) -> float:
        """The standard deviation of the gap over the cycles of the window."""
        mean = self.gap / self.cycles
        return math.sqrt(max(self.square / self.cycles - mean**2, 0.0))

    @property
    def is_suspicious(self) -> bool:
        """Whether the gap of the window is large, positive and no noise."""
        mean, loss = self.gap / self.cycles, abs(self.loss / self.cycles)
        return mean > SPREADS * self.spread and mean > SHARE * loss

    @property
    def should_confirm(self) -> bool:
        """Whether to ask for one more solve: after 2, 4, 8, ... suspicious windows."""
        asks = self.streak >= 2 and self.streak & (self.streak - 1) == 0
        return self.is_complete and asks and not self.told

    @property
    def is_unsolved(self) -> bool:
        """Whether most of the system is left over the window, which was not told."""
        # As for the gap, the first window of a run is left out.
        judged = self.is_complete and self.windows > 1 and not self.unsolved
        return judged and self.residual > RESIDUAL * self.cycles

    @property
    def is_unsymmetric(self) -> bool:
        """Whether a matrix that should be symmetric is not, which was not told."""
        return self.asymmetry > ASYMMETRY and not self.unsymmetric


def begin(
    edges: Iterable[tuple[str, str]], saved: Iterable[Watch]
) -> tuple[Watch, ...]:
    """Return the watches of a run: the saved ones, and new ones."""
    known = {watch.edge: watch for watch in saved}
    new = (Watch(*edge) for edge in edges)
    return tuple(known.get(watch.edge, watch) for watch in new)


def observe(
    watch: Watch, cycles: int, means: Columns, squares: Mapping[str, Any]
) -> Watch:
    """Return a watch after a log interval; a complete window is followed by a new one.

    Args:
        watch: The watch.
        cycles: The cycles of the interval.
        means: The mean metrics of the interval.
        squares: The sums of the squares of gaps over its cycles.
    """
    gap = f"{watch.edge}/gap"
    if not cycles or gap not in squares:
        return watch
    if watch.is_complete:
        watch = watch._replace(cycles=0, gap=0.0, square=0.0, loss=0.0, residual=0.0)
    residual = means.get(f"{watch.edge}/residual", 0.0)
    asymmetry = float(means.get(f"{watch.edge}/asymmetry", 0.0))
    watch = watch._replace(
        cycles=watch.cycles + cycles,
        gap=watch.gap + cycles * float(means[gap]),
        square=watch.square + float(squares[gap]),
        loss=watch.loss + cycles * float(means[f"{watch.upper}/loss"]),
        residual=watch.residual + cycles * float(residual),
        asymmetry=max(watch.asymmetry, asymmetry),
    )
    if not watch.is_complete:
        return watch
    lags = watch.windows > 0 and watch.is_suspicious
    return watch._replace(
        windows=watch.windows + 1, streak=watch.streak + 1 if lags else 0
    )


def describe_unsolved(watch: Watch) -> str:
    """Return that a system is not solved, and what to do."""
    left = watch.residual / watch.cycles
    return (
        f"the linear system of {watch.lower!r} for {watch.upper!r} is not solved: a "
        f"relative residual of {left:.2g} is left (mean of '{watch.edge}/residual' "
        f"over {watch.cycles} cycles). The hypergradient is that of a truncated solve, "
        "which can still train well. For an exact one give the solver more iterations, "
        "or a step or a damping that suits the lower's Hessian."
    )


def describe_unsymmetric(watch: Watch) -> str:
    """Return that a matrix is not symmetric, and what to do."""
    return (
        f"the matrix of {watch.lower!r} for {watch.upper!r} is not symmetric: its "
        f"products differ from those of its transpose by {watch.asymmetry:.2g} "
        f"('{watch.edge}/asymmetry'). A jax.custom_vjp in the loss, or below it, is "
        "not the derivative of its function, such as a straight-through estimator, and "
        "the solver needs a symmetric matrix: the hypergradient is wrong. Correct the "
        "rule, or use mlox.Implicit(mlox.GMRES()), which differentiates what the rule "
        "says."
    )


def describe_lag(watch: Watch, found: Mapping[str, float]) -> str | None:
    """Return that an answer lags, with the figures and what to do; None if unconfirmed.

    Args:
        watch: A watch whose window is suspicious.
        found: What `Step.confirm` has found.
    """
    distance = found.get(f"{watch.edge}/distance", 0.0)
    ratio = found.get(f"{watch.upper}/norm_ratio", 1.0)
    cosine = found.get(f"{watch.upper}/cosine", 1.0)
    if not is_confirmed(distance, ratio, cosine):
        return None
    gap, loss = watch.gap / watch.cycles, watch.loss / watch.cycles
    return (
        f"{watch.lower!r} lags behind {watch.upper!r}: it is not solved, and the loss "
        f"of {watch.upper!r} is off by about {gap:.2g} (mean of '{watch.edge}/gap' "
        f"over {watch.cycles} cycles, spread {watch.spread:.1g}, loss {loss:.2g}). One "
        f"Newton step would move the answer by {distance:.2g} of its norm; the "
        f"hypergradient has {ratio:.2g} times the norm of that after this step, and "
        f"cosine {cosine:.2g} to it. This is a first-order estimate on one batch: it "
        "does not say how far off the trained result is. Give "
        f"{watch.lower!r} more unroll_steps or a larger step, or refine its answer by "
        "mlox.Implicit(refine=1); mlox.check names the cause."
    )


def is_confirmed(distance: float, ratio: float, cosine: float) -> bool:
    """Return whether a Newton step moves an answer far, or its hypergradient.

    Args:
        distance: The length of the step relative to the norm of the answer.
        ratio: The norm of the hypergradient, relative to that after the step.
        cosine: The cosine between the two.
    """
    differs = cosine < COSINE or not 1 / RATIO < ratio < RATIO
    return distance > FAR or (distance > NEAR and differs)
