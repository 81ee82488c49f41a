"""What a run has reached, and how it is handed back when the run stops."""

import dataclasses
from collections import deque
from typing import Any, NamedTuple

import jax
import numpy as np

from mlox._run.early_stopping import Best
from mlox._run.nonfinite import CYCLES
from mlox._utils.types import State

History = dict[str, np.ndarray]


class _Kept(BaseException):
    def __init__(self, message: str, state: State, history: History, cycle: int):
        super().__init__(message)
        self.state = state
        self.history = history
        self.cycle = cycle


class RunError(_Kept, Exception):
    """Stop a run without losing it.

    Raised from the error of a loss, a loader, a validation or a logger.

    Attributes:
        state: The last good state: go on from it with another `run`.
        history: The metrics until `cycle`, in the form that `run` returns.
        cycle: The number of cycles behind `state`.

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


class RunInterrupted(_Kept, KeyboardInterrupt):
    """Stop a run at Ctrl-C without losing it: a KeyboardInterrupt with a state.

    It is no `RunError` and no `Exception`: an `except Exception` around a run must not
    keep Ctrl-C from ending the program.

    Attributes:
        state: The state after the last cycle that was dispatched.
        history: The metrics until `cycle`, in the form that `run` returns.
        cycle: The number of cycles behind `state`.

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


class Point(NamedTuple):
    """A state, and the sums of the metrics of the cycles from `since` to `cycle`."""

    cycle: int
    state: State
    totals: Any
    since: int


@dataclasses.dataclass
class Trail:
    """All that is handed back if the next line fails: the one thing the loop mutates.

    `points` are the last three dispatches. The newest two may still be computing, so
    that the device has work while the host has some; the oldest is known to be good.
    Where dispatches donate, only the newest state exists, and `safe` is the one to fall
    back to. `best` is what an early stopping has seen, and `restored` the state of its
    best point, if that one is asked for.
    """

    safe: Point
    stage: str = "start"
    points: deque[Point] = dataclasses.field(default_factory=lambda: deque(maxlen=3))
    records: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    validations: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    best: Best = dataclasses.field(default_factory=Best)
    restored: State = None

    @property
    def final(self) -> State:
        """The state that a run returns: the restored one, or the last."""
        return self.points[-1].state if self.restored is None else self.restored


def mean_metrics(point: Point) -> dict[str, np.ndarray]:
    """Fetch the means over the cycles from `since` to `cycle`, in one transfer.

    The cycles that were left out for their numbers are counted, and not in the means.
    """
    sums, counts = jax.device_get(point.totals)
    cycles = point.cycle - point.since - counts.get(CYCLES, 0)
    means = {
        name: np.asarray(total / cycles if cycles else np.full_like(total, np.nan))
        for name, total in sums.items()
    }
    return {**means, **{name: np.array(count) for name, count in counts.items()}}


def last_good(trail: Trail) -> tuple[Point, int]:
    """Return the newest state that exists, and the last cycle that was computed."""
    good, computed = trail.safe, trail.safe.cycle
    for point in trail.points:
        try:
            jax.block_until_ready(point.totals)
        except BaseException:  # this dispatch failed, or Ctrl-C came again
            break
        computed = point.cycle
        leaves = jax.tree.leaves(point.state)
        if not any(isinstance(x, jax.Array) and x.is_deleted() for x in leaves):
            good = point
    return good, computed


def history_of(trail: Trail) -> History:
    """Turn the records into columns."""
    empty = {"cycle": np.zeros((0,), int)}
    columns: History = {} if trail.records else empty
    for records in (trail.records, trail.validations):
        for name in records[0] if records else ():
            columns[name] = np.stack([record[name] for record in records])
    if trail.best.cycle or trail.best.waited:
        columns["best_cycle"] = np.asarray(trail.best.cycle)
    return columns


def stopped(
    trail: Trail, failure: BaseException, train_iters: int, cycles_per_dispatch: int
) -> RunError | RunInterrupted:
    """Say where the run stopped, and hand back what it reached."""
    good, computed = last_good(trail)
    if good.cycle > (trail.records[-1]["cycle"] if trail.records else 0):
        trail.records.append({"cycle": np.asarray(good.cycle), **mean_metrics(good)})
    where = f"cycle {computed}"
    if trail.stage.endswith(" of"):
        last = min(computed + cycles_per_dispatch, train_iters)
        first = computed + 1
        where = f"cycle {first}" if last == first else f"cycles {first} to {last}"
    interrupted = isinstance(failure, KeyboardInterrupt)
    verb = "was interrupted" if interrupted else "failed"
    cause = _told(failure)
    message = (
        f"The run {verb} at {trail.stage} {where} of {train_iters}. `.state` holds "
        f"the state after cycle {good.cycle}, `.history` its metrics. {cause}"
    )
    kind = RunInterrupted if interrupted else RunError
    return kind(message, good.state, history_of(trail), good.cycle)


def _told(failure: BaseException) -> str:
    """Say what failed, with its notes; a traceback that it quotes stays its own."""
    text, quoted, rest = str(failure).partition("Traceback (most recent call last):")
    if quoted:
        text += rest.strip().splitlines()[-1]
    notes = vars(failure).get("__notes__", ())
    own = [note for note in notes if not note.startswith("-----")]  # not those of JAX
    return "; ".join([type(failure).__name__ + (f": {text}" if text else ""), *own])
