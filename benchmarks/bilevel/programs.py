"""What a method is to the runner: a start, one step of the upper, and its price."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jobs

Carry = Any
Batches = Mapping[str, Any]


class Rates(NamedTuple):
    """Step lengths, r / (k + 1)^decay in the k-th step of the upper.

    Attributes:
        lower: r of the lower, and of the multiplier where it makes steps.
        upper: r of the upper.
        decay: The exponent.
    """

    lower: Any
    upper: Any
    decay: Any


class Program(NamedTuple):
    """A method on a job.

    Attributes:
        start: Rates -> the first state.
        step: (state, {"lower": batches, "upper": batches}) -> the next one; each with a
            leading axis of `draws`.
        upper: state -> x.
        lower: state -> y.
        draws: {"lower": batches of the lower in a step, "upper": of the upper}.
        evaluations: The price of a step in gradients of a batch, of lower or upper: 1
            for a gradient, 2 for a product of second derivatives with a vector
            (Hessian or cross derivative), as the formulas of the method have them.
    """

    start: Callable[[Rates], Carry]
    step: Callable[[Carry, Batches], Carry]
    upper: Callable[[Carry], jax.Array]
    lower: Callable[[Carry], jax.Array]
    draws: dict[str, int]
    evaluations: int


@dataclass(frozen=True)
class Method:
    """A method, for any job.

    Attributes:
        make: (job, step length, option) -> a program.
        by_step: Whether the length of the lower's steps is part of the program (for a
            step of the multiplier), so that each one is compiled.
        options: Further values, of which each step length is tried with its own.
        decay: The exponent of the step lengths, where the method fixes it.
    """

    make: Callable[[jobs.Job, float, Any], Program]
    by_step: bool = False
    options: tuple[Any, ...] = field(default=(None,) * 4)
    decay: float | None = None
