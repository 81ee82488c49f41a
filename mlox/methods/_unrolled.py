"""Iterative differentiation: through the steps of the inner loop itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlox._utils.fields import COUNT, check_fields, one_of, optional

Rematerialization = Literal["none", "step", "segments"]

# Windows of that many rounds are cut into segments by default. In shorter ones, running
# the segments again doubles the time to compile, and saves little memory.
MANY_ROUNDS = 16


@dataclass(frozen=True)
class Unrolled:
    r"""Differentiate an answer through the steps that led to it, in reverse mode.

    The answer is theta_T of theta_{t+1} = theta_t + u(grad C(theta_t, x), s_t), with
    the real optimizer's update u and state s, over the window of steps since the
    upper's last step; the start of the window is a constant. Exact for the very program
    that runs, however far from convergence.

    Attributes:
        last_steps: Differentiate the last K steps of the window only, at the cost of
            K steps in memory and time (truncation); None for all.
        checkpoint: What reverse mode keeps of the T steps of a window. "none": every
            intermediate value of every step. "step": the state at every step, and the
            step is run again. "segments": the states at the ends of about sqrt(T)
            segments, and segments are run again; the least memory, O(sqrt(T)) states.
            None: "segments" in windows of 16 rounds or more, "none" in shorter ones.

    References:
        Maclaurin, Duvenaud and Adams, Gradient-based Hyperparameter Optimization
        through Reversible Learning, 2015; Shaban et al., Truncated Back-propagation
        for Bilevel Optimization, 2019; Griewank, Achieving Logarithmic Growth of
        Temporal and Spatial Complexity in Reverse Automatic Differentiation, 1992.

    Example:
        >>> import mlox
        >>> mlox.Unrolled(last_steps=5)
        Unrolled(last_steps=5, checkpoint=None)
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
        """Return what reverse mode keeps of a window of that many rounds."""
        if self.checkpoint is None:
            return "segments" if rounds >= MANY_ROUNDS else "none"
        return self.checkpoint


@dataclass(frozen=True)
class Detached:
    r"""Take the steps that led to an answer as constants: first order only.

    theta_{t+1} = theta_t + constant, so that a derivative flows from the answer to the
    start of its inner loop and nowhere else. Where the start depends on uppers through
    `reset`, this is first-order MAML: the gradient at the adapted parameters serves as
    that at their initialization. Without `reset` the answer is a constant.

    References:
        Finn, Abbeel and Levine, Model-Agnostic Meta-Learning, 2017; Nichol, Achiam and
        Schulman, On First-Order Meta-Learning Algorithms, 2018.

    Example:
        >>> import mlox
        >>> mlox.Detached()
        Detached()
    """


Iterative = Unrolled | Detached
"""The methods that differentiate the loop: their answers need no linear system."""
