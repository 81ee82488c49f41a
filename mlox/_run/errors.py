"""The errors of a run, which have the state that it has reached."""

from __future__ import annotations

import numpy as np

from mlox._run.metrics import mean_metrics
from mlox._run.run_state import (
    AHEAD,
    Phase,
    Rows,
    RunState,
    find_last_good,
    history_of,
)
from mlox._utils.types import Columns, State


class _StoppedRun(BaseException):
    def __init__(self, message: str, state: State, history: Columns, cycle: int):
        super().__init__(message)
        self.state = state
        self.history = history
        self.cycle = cycle


class RunError(_StoppedRun, Exception):
    """An error that stops a run, with the state that it has reached.

    Raised from the error of a loss, a loader, a validation or a logger.

    Attributes:
        state: The last good state, from which another `run` can continue.
        history: The metrics until `cycle`, in the form that `run` returns.
        cycle: The number of finished cycles at `state`.

    Example:
        >>> import jax.numpy as jnp, mlox, optax
        >>> problem = mlox.Problem.create(
        ...     name="x", params=jnp.ones(()), tx=optax.sgd(0.5),
        ...     loss_fn=lambda params, batch, ctx: (params - batch) ** 2)
        >>> engine = mlox.Engine([problem])
        >>> one_shot = iter([0.0, 0.0])
        >>> try:
        ...     engine.run(engine.init(), {"x": one_shot}, 3, loggers=())
        ... except mlox.RunError as error:
        ...     print(error.cycle, float(error.state["x"].params))
        2 0.0
    """


class RunInterrupted(_StoppedRun, KeyboardInterrupt):
    """A KeyboardInterrupt that stops a run, with the state that it has reached.

    It is not a `RunError` or an `Exception`, so an `except Exception` around a run does
    not catch Ctrl-C.

    Attributes:
        state: The state after the last cycle that was dispatched.
        history: The metrics until `cycle`, in the form that `run` returns.
        cycle: The number of finished cycles at `state`.

    Example:
        >>> import jax.numpy as jnp, mlox, optax
        >>> problem = mlox.Problem.create(
        ...     name="x", params=jnp.ones(()), tx=optax.sgd(0.5),
        ...     loss_fn=lambda params, batch, ctx: params**2)
        >>> engine = mlox.Engine([problem])
        >>> def press_control_c(state):
        ...     raise KeyboardInterrupt
        >>> try:
        ...     engine.run(engine.init(), train_iters=9, valid_every=2, loggers=(),
        ...                validation=press_control_c)
        ... except KeyboardInterrupt as stopped:
        ...     print(stopped.cycle, float(stopped.state["x"].params))
        2 0.0
    """


def make_run_error(
    failure: BaseException,
    phase: Phase,
    reached: RunState,
    train_iters: int,
    cycles_per_dispatch: int,
) -> RunError | RunInterrupted:
    """Return the error of a run: where it stopped, and what it has reached."""
    good, computed = find_last_good(reached)
    if good.cycle > (reached.records.last["cycle"] if reached.records else 0):
        last = {"cycle": np.asarray(good.cycle), **mean_metrics(good)}
        reached = reached._replace(records=Rows(last, reached.records))
    where = f"cycle {computed}"
    if phase in AHEAD:
        first, end = computed + 1, min(computed + cycles_per_dispatch, train_iters)
        where = f"cycle {first}" if end == first else f"cycles {first} to {end}"
    interrupted = isinstance(failure, KeyboardInterrupt)
    verb = "was interrupted" if interrupted else "failed"
    message = (
        f"The run {verb} at {phase.value} {where} of {train_iters}. `.state` holds the "
        f"state after cycle {good.cycle}, `.history` its metrics. "
        f"{summarize_error(failure)}"
    )
    kind = RunInterrupted if interrupted else RunError
    return kind(message, good.state, history_of(reached), good.cycle)


def summarize_error(failure: BaseException) -> str:
    """Return the type, text and notes of an error, without tracebacks."""
    text, quoted, rest = str(failure).partition("Traceback (most recent call last):")
    if quoted:  # of a callback on the device
        text += rest.strip().splitlines()[-1]
    notes = vars(failure).get("__notes__", ())
    own = [note for note in notes if not note.startswith("-----")]  # not those of JAX
    return "; ".join([type(failure).__name__ + (f": {text}" if text else ""), *own])
