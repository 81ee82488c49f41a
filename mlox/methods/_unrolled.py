"""Iterative differentiation: the inner loop itself is differentiated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax

Body = Callable[[Any, Any], tuple[Any, Any]]
Checkpoint = Literal["none", "step", "segments"]

# Rounds from which segments are the default: below, running them again doubles the time
# to compile, and saves little.
MANY = 16


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
    checkpoint: Checkpoint | None = None

    def __post_init__(self) -> None:
        steps = self.last_steps
        if steps is not None and (
            not isinstance(steps, int) or isinstance(steps, bool) or steps < 1
        ):
            raise ValueError(
                f"Unrolled(last_steps={steps!r}): expected a positive integer, the "
                "number of last steps to differentiate, or None for all."
            )
        if self.checkpoint not in (None, "none", "step", "segments"):
            raise ValueError(
                f"Unrolled(checkpoint={self.checkpoint!r}): expected 'none', 'step', "
                "'segments', or None to choose by the length of the window."
            )

    def keeps(self, rounds: int) -> Checkpoint:
        """Return what is kept of a window of so many rounds."""
        if self.checkpoint is None:
            return "segments" if rounds >= MANY else "none"
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


def checkpointed_scan(
    body: Body, carry: Any, xs: Any, length: int, checkpoint: Checkpoint, unroll: bool
) -> tuple[Any, Any]:
    """Scan like `jax.lax.scan`, keeping for reverse mode what `checkpoint` says.

    Args:
        body: (carry, x) -> (carry, y).
        carry: The initial carry.
        xs: A pytree of arrays with a leading axis of `length`.
        length: The number of iterations.
        checkpoint: See `Unrolled`.
        unroll: Write the iterations out instead of looping.

    Returns:
        The last carry and the stacked ys.
    """

    def scan(step: Body, start: Any, inputs: Any, count: int) -> tuple[Any, Any]:
        return jax.lax.scan(step, start, inputs, count, unroll=count if unroll else 1)

    if checkpoint == "none" or length == 1:
        return scan(body, carry, xs, length)
    # Inside a loop common-subexpression elimination cannot undo the recomputation.
    step = jax.checkpoint(body, prevent_cse=unroll)
    size = math.isqrt(length)
    if checkpoint == "step" or size == 1:
        return scan(step, carry, xs, length)

    def segment(start: Any, inputs: Any) -> tuple[Any, Any]:
        return scan(step, start, inputs, size)

    count, rest = divmod(length, size)
    head, tail = _split(xs, rest)
    ys: list[Any] = []
    if rest:
        carry, y = scan(step, carry, head, rest)
        ys.append(y)
    tail = jax.tree.map(lambda x: x.reshape(count, size, *x.shape[1:]), tail)
    carry, y = scan(jax.checkpoint(segment, prevent_cse=unroll), carry, tail, count)
    ys.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), y))
    return carry, jax.tree.map(lambda *parts: jax.numpy.concatenate(parts), *ys)


def _split(xs: Any, rest: int) -> tuple[Any, Any]:
    head = jax.tree.map(lambda x: x[:rest], xs)
    tail = jax.tree.map(lambda x: x[rest:], xs)
    return head, tail
