"""`mlox.Engine.run`: open the resources of a run, loop, and close them."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from mlox._checkpoint.options import Checkpoint, check_reached
from mlox._checkpoint.save import CheckpointWriter, open_writer
from mlox._data.combinators import open_series
from mlox._data.stacking import check_data
from mlox._logging.base import Logger, resume_loggers
from mlox._logging.console import progress_bar, stdout_logger
from mlox._logging.jsonl import json_logger
from mlox._logging.tensorboard import tensorboard_logger
from mlox._run.arguments import RunConfig, check_config
from mlox._run.dispatch import Step
from mlox._run.early_stopping import EarlyStopping
from mlox._run.errors import make_run_error
from mlox._run.loop import Run, loop
from mlox._run.nonfinite import parse_policy
from mlox._run.resume import resume as resume_run
from mlox._run.run_state import Phase, RunState, history_of, start_at
from mlox._sharding.layout import Layout, check_placement, layout_of
from mlox._sharding.multihost import annotate_device_error, is_device_error
from mlox._utils.fields import Kind, check, instance_of
from mlox._utils.types import State

StateT = TypeVar("StateT", bound=Mapping[str, Any])


LOGGERS = Kind(
    "a list of loggers, or () for none",
    lambda x: isinstance(x, Iterable) and not isinstance(x, Logger),
    TypeError,
)
LOGGER = instance_of(Logger, "a logger, with `log` and `close`")


class Runnable(Protocol):
    """An engine, as far as a run needs it."""

    @property
    def traced(self) -> Step:
        """The step of one cycle."""
        ...


def run(
    self: Runnable,
    state: StateT,
    data: Mapping[str, Iterable[Any] | None] | None = None,
    train_iters: int = 1000,
    *,
    validation: Callable[[StateT], Mapping[str, Any]] | None = None,
    valid_every: int | None = None,
    early_stopping: EarlyStopping | None = None,
    log_every: int | None = None,
    logdir: str | os.PathLike[str] | None = None,
    loggers: Iterable[Logger] | None = None,
    cycles_per_dispatch: int = 1,
    progress: bool | None = None,
    donate: bool = False,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    on_nonfinite: Literal["raise", "skip", "restore"] | None = None,
) -> tuple[StateT, dict[str, np.ndarray]]:
    """Run `train_iters` cycles of an engine.

    The batches of the next dispatch are gathered while the device computes the current
    one. Compiled programs are cached by the engine and its losses: a second run of an
    equal engine with equal shapes compiles nothing.

    Args:
        self: The engine.
        state: The state to start from; it stays usable. On a mesh, see `mlox.shard`, it
            stays placed as it is.
        data: For each problem an iterable of batches, or None. What can be iterated
            over again (a list, a DataLoader) is started again at its end. Where there
            are several processes, each passes its own share. `mlox.together` combines
            several iterables, `mlox.on_epoch_end` adds a callback at the end.
        train_iters: The number of cycles.
        validation: Maps a state to a dict of scalars, logged as `"validation/..."`.
            If `donate` is true it must copy the parts of the state that it keeps. For
            the metrics of one batch: `lambda state: engine.evaluate(state, "name",
            batch)`.
        valid_every: Cycles between validations; the default is `log_every`. There is
            also one at the end.
        early_stopping: Stops the run when a metric has not improved for a while, and
            returns the state of the best point. By then the batches of one more
            dispatch have been taken.
        log_every: Cycles between log points; the default gives 20 log points. There is
            also one at the end.
        logdir: A folder for an event file (TensorBoard) and `metrics.jsonl`.
        loggers: Loggers, which get the scalars of each log point and
            `"cycles_per_second"`, and are always closed at the end. None means
            `[mlox.stdout_logger()]`, one line per log point; `()` means no output.
        cycles_per_dispatch: The number of cycles that are compiled into one program;
            useful if a cycle takes less than a millisecond. Log points and validations
            are then at the ends of dispatches. A shorter last dispatch is compiled
            separately. (Keep 1 for convolutions on CPU, which XLA runs slowly inside a
            loop.)
        progress: Whether to show a progress bar, with the rate, the time left and the
            first losses; None shows it in a terminal and in a notebook.
        donate: Whether each dispatch reuses the memory of the state that it gets.
            `state` is copied first, and so is the state at every log point, for errors.
        checkpoint: Where and how often to save checkpoints, from which the run can be
            resumed bit for bit. After SIGTERM or Ctrl-C the run then finishes the
            current dispatch, saves, and stops.
        resume: Whether to resume from the latest intact checkpoint, with the same
            arguments as before, or to start if there is none. `train_iters` may be
            larger, another `early_stopping` starts from the beginning, and
            `on_nonfinite` and the size of the batches may be others: then a metric
            whose shape follows the batch has NaN in the history before. Only the
            structure and the devices of `state` are used. Log files are cut back to the
            checkpoint.
        on_nonfinite: The policy for a cycle in which a loss, parameters or an
            optimizer's state become non-finite, decided on the device. "raise" keeps
            the state before the cycle, and fails at the next log point, validation or
            checkpoint. "skip" continues from the state before the cycle, "restore" from
            that of the last checkpoint. Skipped cycles use up their batches and count
            as steps; the metrics `"run/nonfinite"` and `"<name>/nonfinite"` count them
            since the last log point. An overflow that a `loss_scale` handles does not
            count. None checks nothing, and costs nothing.

    Returns:
        The last state, or the best one with `early_stopping`, and the history up to the
        last one, as NumPy arrays: `"cycle"` `[n]`; every metric `[n, ...]`, its mean
        over all steps since the previous log point; with a validation
        `"validation/cycle"` `[m]` and `"validation/<name>"` `[m]`; and with early
        stopping `"best_cycle"` `[]`, 0 if the metric was always NaN.

    Raises:
        TypeError: If an argument has a wrong type; before anything runs.
        ValueError: If an argument has a wrong value, including the first batches, or if
            the checkpoint is that of another engine; before anything runs.
        FileExistsError: If the folder of `checkpoint` has a run, and `resume` is false.
        RunError: If a loss, loader, validation or logger fails; it has the last good
            state.
        RunInterrupted: At Ctrl-C, and with a checkpoint at SIGTERM; it has the last
            good state.

    Example:
        >>> import jax.numpy as jnp, mlox, optax
        >>> problem = mlox.Problem.create(
        ...     name="x", params=jnp.ones(()), tx=optax.sgd(0.25),
        ...     loss_fn=lambda params, batch, ctx: (params - batch) ** 2)
        >>> engine = mlox.Engine([problem])
        >>> state, history = engine.run(
        ...     engine.init(), {"x": [0.0]}, train_iters=4, log_every=2, loggers=())
        >>> float(state["x"].params), history["cycle"], history["x/loss"]
        (0.0625, array([2, 4]), array([0.625    , 0.0390625]...))
    """
    step, layout = self.traced, layout_of(state)
    phase, reached = Phase.START, start_at(0, state)
    try:
        with contextlib.ExitStack() as stack:
            used = _take_loggers(stack, loggers)
            config = RunConfig(
                train_iters=train_iters,
                validation=validation,
                valid_every=valid_every,
                early_stopping=early_stopping,
                log_every=log_every,
                logdir=logdir,
                cycles_per_dispatch=cycles_per_dispatch,
                progress=progress,
                donate=donate,
                checkpoint=checkpoint,
                resume=resume,
                policy=parse_policy(on_nonfinite),
            )
            given = {} if data is None else data
            cycles = _open_and_loop(stack, step, state, given, config, used, layout)
            del state  # the loop alone holds states, and forgets those it needs no more
            for phase, reached in cycles:  # noqa: B007
                pass
            phase = Phase.CLOSING
    except BaseException as error:
        if layout is not None and layout.is_multi_process:
            annotate_device_error(error)
        if phase is Phase.START or not isinstance(error, Exception | KeyboardInterrupt):
            raise
        raise make_run_error(
            error, phase, reached, train_iters, cycles_per_dispatch
        ) from error
    return reached.final, history_of(reached)


def _open_and_loop(
    stack: contextlib.ExitStack,
    step: Step,
    state: State,
    data: Mapping[str, Iterable[Any] | None],
    config: RunConfig,
    loggers: Sequence[Logger],
    layout: Layout | None,
) -> Iterator[tuple[Phase, RunState]]:
    """Check the arguments of a run, open what it needs, and loop.

    Yields:
        As `loop`; first of all where the run begins.
    """
    primary = layout is None or layout.is_primary
    multi_process = layout is not None and layout.is_multi_process
    check_data(step.steps_per_cycle, data)
    step.check(state)
    config = check_config(step, config)
    check_placement(layout, config.checkpoint is not None)
    if config.logdir is not None and primary:
        lines = json_logger(pathlib.Path(config.logdir, "metrics.jsonl"))
        stack.enter_context(_closing("a logger", lines))
        events = tensorboard_logger(config.logdir)
        stack.enter_context(_closing("a logger", events))
        loggers = (*loggers, lines, events)
    reached, writer = resume_run(config, step.metadata, state, multi_process), None
    if config.checkpoint is not None:
        writer = open_writer(config.checkpoint, step.metadata)
        stack.enter_context(_closing("the checkpoints", writer, multi_process))
    first = reached.point.cycle
    check_reached(first, config.train_iters)
    sources = {
        name: open_series(f"data of {name!r}", series, reached.positions.get(name))
        for name, series in data.items()
        if series is not None
    }
    loggers = loggers if primary else ()
    if config.resume:
        resume_loggers(loggers, first)
    shown = config.progress if primary else False
    bar = stack.enter_context(progress_bar(config.train_iters, first, shown))
    yield Phase.START, reached
    cycles = loop(Run(step, config, sources, loggers, bar, writer, layout), reached)
    del state, reached
    yield from cycles


def _take_loggers(
    stack: contextlib.ExitStack, loggers: Iterable[Logger] | None
) -> Sequence[Logger]:
    """Return the loggers of a run, which are always closed at its end.

    Raises:
        TypeError: If one of them is not a logger.
    """
    given = (stdout_logger(),) if loggers is None else loggers
    check("`loggers`", given, LOGGERS, "Pass e.g. [mlox.stdout_logger()].")
    taken = list(given)
    for logger in taken:
        if isinstance(logger, Logger):
            stack.enter_context(_closing("a logger", logger))
    for logger in taken:
        hint = "Call the factory, e.g. mlox.stdout_logger()."
        check("an entry of `loggers`", logger, LOGGER, hint)
    return taken


@contextlib.contextmanager
def _closing(
    name: str, resource: Logger | CheckpointWriter, multi_process: bool = False
) -> Generator[None]:
    """Close a resource at the end, without hiding an earlier error."""
    try:
        yield
    except BaseException as failure:
        # Checkpoints of several processes would wait for a process that has died.
        if not (multi_process and is_device_error(failure)):
            try:
                resource.close()
            except BaseException as error:
                failure.add_note(f"Closing {name} failed, too: {error!r}")
        raise
    resource.close()
