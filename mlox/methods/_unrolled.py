"""Iterative differentiation: through the steps of the inner loop itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mlox._utils.describe import show_call
from mlox._utils.fields import (
    COUNT,
    COUNT_OR_ZERO,
    FLAG,
    check_fields,
    one_of,
    optional,
)
from mlox.methods._loop import Iterative, Pull, pull_in_reverse

Rematerialization = Literal["none", "step", "segments"]

# The older spelling of `levels`.
LEVELS = {"none": 0, "step": 1, "segments": 2}

# Windows of at least this many rounds have that many levels of checkpoints by default,
# from the longest windows to the shortest.
MANY_ROUNDS = {512: 3, 16: 2, 0: 0}


@dataclass(frozen=True, repr=False)
class Unrolled(Iterative):
    r"""Differentiate an answer through the steps that led to it, in reverse mode.

    The answer is theta_T of theta_{t+1} = theta_t + u(grad C(theta_t, x), s_t), with
    the real optimizer's update u and state s, over the window of steps since the
    upper's last step; the start of the window is a constant. The derivative is exact
    for the program that runs, at any distance from convergence.

    Attributes:
        last_steps: Differentiate only the last K steps of the window (truncation),
            which takes the memory and time of K steps; None for all steps.
        checkpoint: The older spelling of `levels`: "none" is 0, "step" 1, "segments" 2.
        levels: How often reverse mode recomputes steps rather than store what they
            compute. 0: it stores every intermediate value of the T steps of a window.
            1: the state at every step, of which it recomputes one at a time. L: the
            states at the ends of nested segments, about L T^(1/L) states, for L runs of
            the window beside the first one. None: 0 in windows of less than 16 rounds,
            2 in those of less than 512, and 3 in longer ones.
        memory: A budget in bytes for what reverse mode stores of a window at one time:
            the least levels that meet it are taken. The states that the steps carry are
            counted, and what one linearized step stores.
        mixed: Whether the gradient of a step is differentiated in mixed mode: forward
            over reverse, in place of a backward pass through its backward pass. It is
            the same number, and needs less memory and time where the activations of a
            step outweigh its parameters. None: where that is so, which is told from
            the sizes in the program. Losses with a `custom_vjp`, a `custom_jvp` of your
            own, or lowers with implicit answers are differentiated without it.

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

    checkpoint: Rematerialization | None = None
    levels: int | None = None
    memory: int | None = None
    mixed: bool | None = None

    pull: ClassVar[Pull] = staticmethod(pull_in_reverse)

    def __post_init__(self) -> None:
        check_fields(
            self,
            last_steps=optional(COUNT),
            checkpoint=optional(one_of(*LEVELS)),
            levels=optional(COUNT_OR_ZERO._replace(expected="an int >= 0")),
            memory=optional(COUNT),
            mixed=optional(FLAG),
        )
        if self.memory is not None and self.levels_given is not None:
            raise ValueError(
                f"Unrolled has memory={self.memory} and levels={self.levels_given}; "
                "expected one of the two, as memory chooses the levels. Give one."
            )
        if self.checkpoint is not None and self.levels is not None:
            raise ValueError(
                f"Unrolled has levels={self.levels} and checkpoint="
                f"{self.checkpoint!r}, an older spelling of "
                f"levels={LEVELS[self.checkpoint]}; expected one of the two. Give "
                "levels alone."
            )

    @property
    def levels_given(self) -> int | None:
        """The levels in either spelling."""
        return self.levels if self.checkpoint is None else LEVELS[self.checkpoint]

    def levels_of(self, rounds: int) -> int:
        """Return the levels of checkpoints in a window of that many rounds."""
        if self.levels_given is not None:
            # More would cut single rounds.
            return min(self.levels_given, rounds.bit_length())
        return next(n for least, n in MANY_ROUNDS.items() if rounds >= least)

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

    pull: ClassVar[Pull] = staticmethod(pull_in_reverse)

    __repr__ = show_call
