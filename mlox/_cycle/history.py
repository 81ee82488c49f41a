"""The past of a window, and the outcome of the layers below it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax

from mlox._hypergradient.point import Constant
from mlox._problem.problem import Problem
from mlox._utils.types import Metrics, PyTree


class History(NamedTuple):
    """The past of a window, as far as a hypergradient needs it.

    Attributes:
        model_states: The mutable state of each problem before its last step.
        samples: The last batch of each problem that samples its batches.
        starts: For each problem whose last window can be run again, the problems below
            it when that window began, and what these read as constants.
        first_steps: The count of each problem when its present window began.
        constants: What the last step of an implicit answer read as constants, as far as
            it may have changed since, by the name of the answer.
    """

    model_states: dict[str, PyTree]
    samples: dict[str, PyTree]
    starts: dict[str, dict[str, Problem]]
    first_steps: dict[str, jax.Array]
    constants: dict[str, dict[str, Constant]]


class LowerRun(NamedTuple):
    """The outcome of the rounds below a layer.

    Attributes:
        state: The state after.
        history: Their history.
        metrics: Their metrics.
        pull: Cotangents of unrolled answers -> cotangents of the layer's params.
    """

    state: dict[str, Problem]
    history: History
    metrics: Metrics
    pull: Callable[[PyTree], PyTree]


def narrow(history: History, names: Collection[str]) -> History:
    """Return the part of a history that is about some problems."""
    parts: tuple[Any, ...] = tuple(
        {n: x for n, x in part.items() if n in names} for part in history
    )
    return History(*parts)


def narrow_run(run: LowerRun, names: Collection[str]) -> LowerRun:
    """Return the outcome of a run as seen by a problem that depends on some."""
    state = {n: run.state[n] for n in names}
    return run._replace(state=state, history=narrow(run.history, names))
