"""The one host loop: batches in, states out, with logging and validation.

The device never waits for the host between log points: a dispatch returns before it is
computed, the next batches are gathered meanwhile, and metrics stay on the device.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from mlox import _data, _log

State = Any
History = dict[str, np.ndarray]
Validation = Callable[[State], Mapping[str, Any]]


class Steps(Protocol):
    """Say what the loop needs of an engine: a frozen value that hashes and compares."""

    @property
    def steps_per_cycle(self) -> Mapping[str, int]:
        """The number of steps that each problem makes in one cycle."""
        ...

    def step(self, state: Any, batches: Any) -> tuple[Any, dict[str, jax.Array]]:
        """Make one cycle: a pure function."""
        ...


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
        ...     engine.run(engine.init(), {"x": one_shot}, train_iters=3)
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
        ...     engine.run(engine.init(), train_iters=9, valid_every=2,
        ...                validation=press_control_c)
        ... except KeyboardInterrupt as stopped:
        ...     print(stopped.cycle, float(stopped.state["x"].params))
        2 0.0
    """


class _Point(NamedTuple):
    """A state, and the sums of the metrics of the cycles from `since` to `cycle`."""

    cycle: int
    state: State
    totals: Any
    since: int


class _Plan(NamedTuple):
    """The checked options of a run."""

    train_iters: int
    log_every: int
    valid_every: int
    cycles_per_dispatch: int
    validation: Validation | None
    donate: bool


@dataclasses.dataclass
class _Trail:
    """All that is handed back if the next line fails: the one thing the loop mutates.

    `points` are the last three dispatches. The newest two may still be computing, so
    that the device has work while the host has some; the oldest is known to be good.
    Where dispatches donate, only the newest state exists, and `safe` is the one to fall
    back to.
    """

    safe: _Point
    stage: str = "start"
    points: deque[_Point] = dataclasses.field(default_factory=lambda: deque(maxlen=3))
    records: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    validations: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)


def run(
    engine: Steps,
    state: State,
    data: Mapping[str, Iterable[Any] | None] | None = None,
    train_iters: int = 1000,
    *,
    validation: Validation | None = None,
    valid_every: int | None = None,
    log_every: int | None = None,
    logdir: str | os.PathLike[str] | None = None,
    loggers: Iterable[_log.Logger] = (),
    cycles_per_dispatch: int = 1,
    progress: bool | None = None,
    donate: bool = False,
) -> tuple[State, History]:
    """Run `train_iters` cycles of an engine.

    Batches of the next dispatch are gathered while the device computes this one. The
    compiled programs belong to the engine's configuration: a second run of an equal
    engine with equal shapes compiles nothing.

    Args:
        engine: The engine.
        state: The state to start from; it stays usable.
        data: For each problem an iterable of batches, or None. What can be iterated
            over again (a list, a DataLoader) is started again at its end.
        train_iters: The number of cycles.
        validation: Maps a state to a dict of scalars, logged as `"validation/..."`.
            Copy what it keeps of the state if `donate` is true.
        valid_every: Cycles between validations; the default is `log_every`. There is
            one at the end, too.
        log_every: Cycles between log points; the default gives 20. The end is one.
        logdir: A folder for an event file (TensorBoard) and `metrics.jsonl`.
        loggers: More loggers, e.g. `stdout_logger()`. They get the scalars of a log
            point and `"cycles_per_second"`. They are closed, however the run ends.
        cycles_per_dispatch: Compile that many cycles into one program: worthwhile when
            a cycle takes less than a millisecond. Log points and validations then fall
            on the end of a dispatch. A shorter last dispatch is compiled by itself.
            (Keep 1 for convolutions on CPU, which XLA runs slowly inside a loop.)
        progress: Whether to show a progress bar; None shows it on a terminal.
        donate: Let each dispatch reuse the memory of the state that it gets. `state`
            is copied first, and so is the state at every log point, for errors.

    Returns:
        The last state, and a history of NumPy arrays: `"cycle"` `[n]`; every metric
        `[n, ...]`, its mean over all steps since the log point before; and with a
        validation `"validation/cycle"` `[m]` and `"validation/<name>"` `[m]`.

    Raises:
        TypeError: If an argument is of a wrong kind; nothing has run then.
        ValueError: If an argument is wrong; nothing has run then. What fails before
            the first dispatch (the first batch, tracing a loss) is raised as it is.
        RunError: If anything fails later; it holds the last good state.
        RunInterrupted: At Ctrl-C; it holds the last good state.

    Example:
        >>> import jax.numpy as jnp, mlox, optax
        >>> problem = mlox.Problem.create(
        ...     name="x", params=jnp.ones(()), tx=optax.sgd(0.25),
        ...     loss_fn=lambda params, batch, ctx: (params - batch) ** 2)
        >>> engine = mlox.Engine([problem])
        >>> state, history = engine.run(
        ...     engine.init(), {"x": [0.0]}, train_iters=4, log_every=2)
        >>> float(state["x"].params), history["cycle"], history["x/loss"]
        (0.0625, array([2, 4]), array([0.625    , 0.0390625]...))
    """
    trail = _Trail(safe=_Point(0, state, None, 0))
    failure: BaseException | None = None
    opened = list(loggers)
    try:
        series = {} if data is None else data
        _data.check_data(engine.steps_per_cycle, series)
        sources = {
            name: _data.repeat(name, value)
            for name, value in series.items()
            if value is not None
        }
        _check(engine, validation, valid_every, opened)
        train_iters = _positive("train_iters", train_iters)
        log_every = max(1, train_iters // 20) if log_every is None else log_every
        plan = _Plan(
            train_iters,
            _positive("log_every", log_every),
            _positive("valid_every", log_every if valid_every is None else valid_every),
            _positive("cycles_per_dispatch", cycles_per_dispatch),
            validation,
            donate,
        )
        opened += _files(logdir)
        with _log.progress_bar(train_iters, progress) as bar:
            _loop(engine, sources, plan, trail, opened, bar)
    except BaseException as error:
        failure = error
    failure = _close(opened, trail, failure)
    if failure is None:
        return trail.points[-1].state, _history(trail)
    if trail.stage == "start" or not isinstance(failure, Exception | KeyboardInterrupt):
        raise failure
    raise _stopped(trail, failure, train_iters, cycles_per_dispatch) from failure


def _loop(
    engine: Steps,
    sources: dict[str, Iterator[Any]],
    plan: _Plan,
    trail: _Trail,
    loggers: list[_log.Logger],
    bar: tqdm,
) -> None:
    """Dispatch, gather the next batches meanwhile, then see to what is due."""
    counts = _counts(plan.train_iters, plan.cycles_per_dispatch)
    programs = {count: _program(engine, count, plan.donate) for count in set(counts)}
    batches = _gather(engine, sources, counts[0])
    start = _copy(trail.safe.state) if plan.donate else trail.safe.state
    zeros = _zeros(engine, counts[0])(start, batches)
    point = _Point(0, start, zeros, 0)
    clock: float | None = None
    for count, following in itertools.pairwise((*counts, 0)):
        trail.stage = "the step of"
        state, totals = programs[count](point.state, point.totals, batches)
        point = _Point(point.cycle + count, state, totals, point.since)
        trail.points.append(point)
        if clock is None:  # started here, it leaves out tracing and compiling
            clock = time.perf_counter()
        if following:
            trail.stage = "the data of"
            batches = _gather(engine, sources, following)
        trail.stage = "the step of"
        if len(trail.points) > 1:
            jax.block_until_ready(trail.points[-2].totals)
        bar.update(count)
        last = following == 0
        logs = last or _passes(plan.log_every, point.cycle, count)
        validates = last or _passes(plan.valid_every, point.cycle, count)
        scalars = _measure(plan, trail, point, clock) if logs else {}
        if validates and plan.validation is not None:
            scalars |= _validate(plan.validation, trail, point)
        if scalars:
            trail.stage = "logging after"
            for logger in loggers:
                logger.log(point.cycle, dict(scalars))
            bar.set_postfix_str(_log.summary(scalars), refresh=False)
        if logs:
            point = point._replace(totals=zeros, since=point.cycle)
            clock = time.perf_counter()


def _measure(
    plan: _Plan, trail: _Trail, point: _Point, clock: float
) -> dict[str, float]:
    """Record the means since the last log point, and return the scalars."""
    means = _means(point)
    speed = (point.cycle - point.since) / max(time.perf_counter() - clock, 1e-9)
    if plan.donate:
        trail.safe = point._replace(state=_copy(point.state))
    trail.records.append({"cycle": np.asarray(point.cycle), **means})
    shown = {n: float(m) for n, m in means.items() if m.ndim == 0 and np.isrealobj(m)}
    return {"cycles_per_second": speed, **shown}


def _means(point: _Point) -> dict[str, np.ndarray]:
    """Fetch the means over the cycles from `since` to `cycle`, in one transfer."""
    cycles = point.cycle - point.since
    totals = jax.device_get(point.totals)
    return {name: np.asarray(total / cycles) for name, total in totals.items()}


def _validate(validation: Validation, trail: _Trail, point: _Point) -> dict[str, float]:
    """Call the validation on a state that is computed, and record its scalars."""
    jax.block_until_ready(point.totals)
    trail.stage = "the validation after"
    found = validation(point.state)
    if not isinstance(found, Mapping):
        raise TypeError(
            f"`validation` must return a dict of scalars, got {type(found).__name__}. "
            f'Return e.g. {{"accuracy": accuracy}}.'
        )
    scores = {}
    for name, value in jax.device_get(dict(found)).items():
        score = np.asarray(value)
        if score.ndim or not _data.is_numeric(score) or np.iscomplexobj(score):
            raise ValueError(
                f"`validation` must return real scalars, but {name!r} is "
                f"{score.dtype}{list(score.shape)}. Reduce it, e.g. by its mean."
            )
        scores[f"validation/{name}"] = score
    record = {"validation/cycle": np.asarray(point.cycle), **scores}
    if trail.validations and set(record) != set(trail.validations[0]):
        raise ValueError(
            f"`validation` returned {sorted(record)}, but at first "
            f"{sorted(trail.validations[0])}. Return the same names every time."
        )
    trail.validations.append(record)
    return {name: float(score) for name, score in scores.items()}


# Compiled programs. They are kept by the engine's value, so that a second run does not
# trace, and few, so that old engines are let go.


@functools.lru_cache(maxsize=16)
def _cycle(engine: Steps) -> Callable[[State, Any], tuple[State, Any]]:
    """Jit one cycle, for its cache of traces: every program here uses one trace."""
    return jax.jit(engine.step, inline=True)


@functools.lru_cache(maxsize=16)
def _program(
    engine: Steps, count: int, donate: bool
) -> Callable[[State, Any, Any], tuple[State, Any]]:
    """Compile `count` cycles that add the means over their steps to `totals`."""
    step = _cycle(engine)

    def cycle(carry: tuple[State, Any], batches: Any) -> tuple[tuple[State, Any], None]:
        state, totals = carry
        state, metrics = step(state, batches)
        return (state, {n: _add(totals[n], m) for n, m in metrics.items()}), None

    def program(state: State, totals: Any, batches: Any) -> tuple[State, Any]:
        if count == 1:
            return cycle((state, totals), batches)[0]
        return lax.scan(cycle, (state, totals), batches, length=count)[0]

    return jax.jit(program, donate_argnums=(0,) if donate else ())


@functools.lru_cache(maxsize=16)
def _zeros(engine: Steps, count: int) -> Callable[[State, Any], Any]:
    """Make the totals to start from, on the devices of the state.

    As the output of a program that keeps the (unused) state among its arguments they
    are placed just as the totals of a later dispatch are. Zeros from anywhere else
    would cost a second compilation if the state is committed or sharded.
    """
    step = _cycle(engine)

    def zeros(state: State, batches: Any) -> Any:
        if count > 1:
            batches = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches
            )
        _, metrics = jax.eval_shape(step, state, batches)
        return {
            name: jnp.zeros(m.shape[1:], _sum_dtype(m.dtype))
            for name, m in metrics.items()
        }

    return jax.jit(zeros, keep_unused=True)


def _sum_dtype(dtype: Any) -> Any:
    """Sum in the dtype of the metric, but in float32 what has no or few digits."""
    wide = jnp.issubdtype(dtype, np.inexact) and jnp.dtype(dtype).itemsize >= 4
    return dtype if wide else jnp.float32


def _add(total: jax.Array, metric: jax.Array) -> jax.Array:
    return total + jnp.mean(metric, axis=0, dtype=total.dtype)


def _copy(state: State) -> State:
    return jax.tree.map(jnp.copy, state)


def _gather(engine: Steps, sources: dict[str, Iterator[Any]], count: int) -> Any:
    """Stack the batches of a dispatch and start their way to the device."""
    cycles = None if count == 1 else count
    return jax.device_put(_data.stack(engine.steps_per_cycle, sources, cycles))


def _counts(train_iters: int, cycles_per_dispatch: int) -> list[int]:
    """Split the cycles into dispatches: all of one length, but for the last one."""
    full, rest = divmod(train_iters, cycles_per_dispatch)
    return [cycles_per_dispatch] * full + [rest] * (rest > 0)


def _passes(every: int, cycle: int, count: int) -> bool:
    """Say whether one of the last `count` cycles is a multiple of `every`."""
    return cycle // every > (cycle - count) // every


def _files(logdir: str | os.PathLike[str] | None) -> list[_log.Logger]:
    if logdir is None:
        return []
    lines = _log.json_logger(pathlib.Path(logdir, "metrics.jsonl"))
    return [lines, _log.tensorboard_logger(logdir)]


def _close(
    loggers: list[_log.Logger], trail: _Trail, failure: BaseException | None
) -> BaseException | None:
    """Close every logger, and return the first failure of all."""
    for logger in loggers:
        try:
            logger.close()
        except BaseException as error:
            if failure is None:
                failure, trail.stage = error, "closing a logger after"
            else:
                failure.add_note(f"Closing a logger failed, too: {error!r}")
    return failure


def _last_good(trail: _Trail) -> tuple[_Point, int]:
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


def _history(trail: _Trail) -> History:
    """Turn the records into columns."""
    empty = {"cycle": np.zeros((0,), int)}
    columns: History = {} if trail.records else empty
    for records in (trail.records, trail.validations):
        for name in records[0] if records else ():
            columns[name] = np.stack([record[name] for record in records])
    return columns


def _stopped(
    trail: _Trail, failure: BaseException, train_iters: int, cycles_per_dispatch: int
) -> RunError | RunInterrupted:
    """Say where the run stopped, and hand back what it reached."""
    good, computed = _last_good(trail)
    if good.cycle > (trail.records[-1]["cycle"] if trail.records else 0):
        trail.records.append({"cycle": np.asarray(good.cycle), **_means(good)})
    where = f"cycle {computed}"
    if trail.stage.endswith(" of"):
        last = min(computed + cycles_per_dispatch, train_iters)
        first = computed + 1
        where = f"cycle {first}" if last == first else f"cycles {first} to {last}"
    interrupted = isinstance(failure, KeyboardInterrupt)
    verb = "was interrupted" if interrupted else "failed"
    cause = type(failure).__name__ + (f": {failure}" if str(failure) else "")
    message = (
        f"The run {verb} at {trail.stage} {where} of {train_iters}. `.state` holds "
        f"the state after cycle {good.cycle}, `.history` its metrics. {cause}"
    )
    kind = RunInterrupted if interrupted else RunError
    return kind(message, good.state, _history(trail), good.cycle)


def _positive(name: str, value: Any) -> int:
    valid = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not valid or value < 1:
        raise ValueError(
            f"`{name}` must be a positive int, a number of cycles, got {value!r}."
        )
    return int(value)


def _check(
    engine: Steps,
    validation: Validation | None,
    valid_every: int | None,
    loggers: list[_log.Logger],
) -> None:
    """Check what can be checked of the hooks before anything runs."""
    if validation is None and valid_every is not None:
        raise ValueError(
            f"`valid_every` is {valid_every!r}, but there is no `validation`: pass a "
            f"function from a state to a dict of scalars, or drop `valid_every`."
        )
    if validation is not None and not callable(validation):
        raise TypeError(
            f"`validation` must be a function from a state to a dict of scalars, got "
            f"{type(validation).__name__}."
        )
    if validation is not None and "validation" in engine.steps_per_cycle:
        raise ValueError(
            "a problem is called 'validation', so its metrics would be mixed with "
            "those of `validation`: rename the problem."
        )
    for logger in loggers:
        if not isinstance(logger, _log.Logger):
            raise TypeError(
                f"`loggers` must be loggers, with `log` and `close`, got "
                f"{type(logger).__name__}. Call the factory, e.g. stdout_logger()."
            )
