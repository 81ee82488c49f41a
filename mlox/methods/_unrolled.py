"""Iterative differentiation: through the steps of the inner loop itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlox._utils.describe import show_call
from mlox._utils.fields import COUNT, check_fields, one_of, optional

Rematerialization = Literal["none", "step", "segments"]

# In n segments of T/n rounds, reverse mode stores the n states at their ends and, while
# one segment is recomputed, its T/n states: n + T/n is least for n = sqrt(T).
#
# Windows of at least this many rounds are cut into segments by default. In shorter
# ones, recomputing segments doubles the time to compile, and saves little memory.
MANY_ROUNDS = 16


@dataclass(frozen=True, repr=False)
class Unrolled:
    r"""Differentiate an answer through the steps that led to it, in reverse mode.

    The answer is theta_T of theta_{t+1} = theta_t + u(grad C(theta_t, x), s_t), with
    the real optimizer's update u and state s, over the window of steps since the
    upper's last step; the start of the window is a constant. The derivative is exact
    for the program that runs, at any distance from convergence.

    Attributes:
        last_steps: Differentiate only the last K steps of the window (truncation),
            which takes the memory and time of K steps; None for all steps.
        checkpoint: What reverse mode stores of the T steps of a window. "none": every
            intermediate value of every step. "step": the state at every step; steps are
            recomputed. "segments": the states at the ends of about sqrt(T) segments;
            segments are recomputed, which needs the least memory, O(sqrt(T)) states.
            None: "segments" in windows of 16 rounds or more, "none" in shorter ones.

    References:
        Maclaurin, Duvenaud and Adams, Gradient-based Hyperparameter Optimization
        through Reversible Learning, 2015; Shaban et al., Truncated Back-propagation
        for Bilevel Optimization, 2019; Griewank, Achieving Logarithmic Growth of
        Temporal and Spatial Complexity in Reverse Automatic Differentiation, 1992.

    Example:
        >>> import mlox
        >>> mlox.Unrolled(last_steps=5)
        Unrolled(last_steps=5)
    """

    last_steps: int | None = None
    checkpoint: Rematerialization | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            last_steps=optional(COUNT),
            checkpoint=optional(one_of("none", "step", "segments")),
        )

    def rematerialization(self, rounds: int) -> Rematerialization:
        """Return what reverse mode stores of a window of that many rounds."""
        if self.checkpoint is None:
            return "segments" if rounds >= MANY_ROUNDS else "none"
        return self.checkpoint

    __repr__ = show_call


@dataclass(frozen=True, repr=False)
class Detached:
    r"""Treat the steps that led to an answer as constants: first order only.

    theta_{t+1} = theta_t + constant, so a derivative flows from the answer to the start
    of its inner loop and nowhere else. If the start depends on uppers through `reset`,
    this is first-order MAML: the gradient at the adapted parameters is used as the
    gradient at the initial ones. Without `reset` the answer is a constant, which says
    that it is meant to be one: the engine does not warn then of edges along which
    nothing flows.

    References:
        Finn, Abbeel and Levine, Model-Agnostic Meta-Learning, 2017; Nichol, Achiam and
        Schulman, On First-Order Meta-Learning Algorithms, 2018.

    Example:
        >>> import mlox
        >>> mlox.Detached()
        Detached()
    """

    __repr__ = show_call


Iterative = Unrolled | Detached
"""The methods that differentiate the loop: their answers need no linear system."""
