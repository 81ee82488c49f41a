"""The one host loop: batches in, states out, with logging, validation and saving.

The device does not wait for the host between log points: a dispatch returns before it
is computed, the next batches are gathered meanwhile, and metrics stay on the device.
Only if the state is so large that a third one would be a burden, a dispatch begins when
the one before it is computed.

The loop is a generator of frozen values. Before every line that may fail, and after
every change, it yields its phase and the state of the run. If it raises, its caller
therefore has the last state, and returns it with the error.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from mlox._checkpoint.options import check_best
from mlox._checkpoint.save import CheckpointWriter
from mlox._data.iterators import BatchIterator
from mlox._logging.base import Logger, send_note
from mlox._logging.console import format_losses
from mlox._run import dispatch, health, metrics, nonfinite, resume
from mlox._run.arguments import Due, RunConfig
from mlox._run.dispatch import Step, Totals
from mlox._run.early_stopping import check_recorded, stop_reason
from mlox._run.nonfinite import Policy
from mlox._run.run_state import Phase, Point, Rows, RunState
from mlox._run.screen import screen_answers
from mlox._run.signals import catch_signals, preemption_message
from mlox._sharding.layout import Layout
from mlox._sharding.multihost import gather_positions, poll_preemption
from mlox._utils.types import PyTree
from mlox._utils.warn import warn


class Run(NamedTuple):
    """A run: its arguments, its open resources, and the layout of its state."""

    step: Step
    config: RunConfig
    sources: Mapping[str, BatchIterator]
    loggers: Sequence[Logger]
    bar: tqdm[Any]
    writer: CheckpointWriter | None
    layout: Layout | None

    @property
    def multi_process(self) -> bool:
        """Whether the run has several processes."""
        return self.layout is not None and self.layout.is_multi_process

    @property
    def is_primary(self) -> bool:
        """Whether this process speaks for all."""
        return self.layout is None or self.layout.is_primary

    def should_stop(self, reached: RunState) -> bool:
        """Return whether the early stopping ends the run."""
        rule = self.config.early_stopping
        return rule is not None and reached.best.waited >= rule.patience

    def stack_batches(self, count: int) -> Any:
        """Return the batches of the next `count` cycles."""
        return dispatch.stack_batches(self.step, self.sources, count, self.layout)

    def tell(self, cycle: int, text: str) -> None:
        """Warn of something, in Python and in the logs."""
        send_note(self.loggers, cycle, text)
        if self.is_primary:
            warn(f"Cycle {cycle}: {text}")

    def keep(self, state: PyTree) -> PyTree:
        """Return a state whose memory no dispatch will reuse."""
        return dispatch.copy_state(state) if self.config.donate else state


def loop(
    run: Run, reached: RunState
) -> Generator[tuple[Phase, RunState], None, RunState]:
    """Make all dispatches of a run, and handle what is due after each.

    Args:
        run: The run.
        reached: Where it begins.

    Yields:
        What the run is doing, and what it has reached; an error of the loop belongs to
        the last pair.

    Returns:
        What it has reached at its end.
    """
    config, first = run.config, reached.point.cycle
    cycles, each = config.train_iters - first, config.cycles_per_dispatch
    if not cycles or run.should_stop(reached):
        return reached
    size = min(cycles, each)
    batches = run.stack_batches(size)
    reached, zeros = yield from _prepare(run, reached, size, batches)
    programs = {
        n: dispatch.compile_cycles(
            run.step, n, config.donate, config.policy, run.layout
        )
        for n in {size, cycles % each} - {0}
    }
    sizes = itertools.chain(dispatch.dispatch_sizes(cycles, each), (0,))
    ahead = 0 if dispatch.is_large(reached.point.state) else 1
    # Where there are several processes, JAX catches the signals.
    catches = run.writer is not None and not run.multi_process
    with catch_signals(catches) as signals:
        for number, (size, following) in enumerate(itertools.pairwise(sizes)):
            yield Phase.STEP, reached
            point = reached.point
            state, totals = programs[size](
                point.state, point.totals, batches, reached.rewind_to
            )
            point = Point(point.cycle + size, state, totals, point.since)
            reached = reached.reach(point)
            if not number:  # from here, without tracing and compiling
                reached = reached._replace(clock=(first, time.perf_counter()))
            if run.writer is not None:  # before the batches of the next dispatch
                positions = {n: source.position() for n, source in run.sources.items()}
                reached = reached._replace(positions=positions)
            if following:
                yield Phase.DATA, reached
                del batches  # the dispatch has what it still needs of them
                batches = run.stack_batches(following)
            yield Phase.STEP, reached
            reached = reached.settle(ahead, config.donate)
            run.bar.update(size)
            asked = poll_preemption(number) if run.multi_process else bool(signals)
            due = config.due(point.cycle, size)
            if not (asked or any(due)):
                continue
            if config.donate and due.logs:
                # If this dispatch has failed, the error needs the fallback before.
                jax.block_until_ready(point.totals)
                reached = reached._replace(fallback=point)  # frees the one before
                yield Phase.STEP, reached
                reached = metrics.copy_fallback(reached)
            reached = yield from _handle_point(run, reached, zeros, due, asked)
            if due.logs:
                yield Phase.LOGGING, reached
                reached = screen_answers(
                    run.step,
                    reached,
                    batches,
                    following or size,
                    run.layout,
                    functools.partial(run.tell, point.cycle),
                )
            if run.should_stop(reached):
                return reached
            if asked and following:
                yield Phase.SIGNAL, reached
                path = run.writer.checkpoint.path if run.writer is not None else None
                raise KeyboardInterrupt(preemption_message(signals, path))
    return reached


def _prepare(
    run: Run, reached: RunState, size: int, batches: Any
) -> Generator[tuple[Phase, RunState], None, tuple[RunState, Totals]]:
    """Return the state before the first dispatch, and the totals after a log point."""
    config, point = run.config, reached.point
    state = run.keep(point.state)
    yield Phase.STEP, reached
    zeros = dispatch.make_zeros(
        run.step, size, config.policy, run.layout, state, batches
    )
    recorded = dispatch.scalar_names({**zeros.sums, **zeros.counts})
    if config.early_stopping is not None and not config.stops_by_score:
        yield Phase.EARLY_STOPPING, reached
        check_recorded(config.early_stopping, recorded)
    if config.checkpoint is not None and not config.checkpoint.of_scores:
        yield Phase.CHECKPOINT, reached
        check_best(config.checkpoint, recorded)
    point = resume.restore_totals(point, zeros, config.policy)
    watches = health.begin(run.step.list_screened(state), reached.watches)
    reached = reached._replace(points=(point._replace(state=state),), watches=watches)
    if config.policy is Policy.RESTORE and reached.rewind_to is None:
        reached = reached._replace(rewind_to=point.state)
    return reached, zeros


def _handle_point(
    run: Run, reached: RunState, zeros: Totals, due: Due, asked: bool
) -> Generator[tuple[Phase, RunState], None, RunState]:
    """Record, log and save after a dispatch, if it is due or a signal requests it."""
    config, cycle = run.config, reached.point.cycle
    if config.policy is Policy.RAISE and (any(due) or asked):
        yield from _raise_if_nonfinite(reached)
    reached, scalars = yield from _measure(run, reached, zeros, due.logs, due.validates)
    rule, stops = config.early_stopping, False
    if rule and (due.validates if config.stops_by_score else due.logs):
        yield Phase.EARLY_STOPPING, reached
        reached = metrics.update_early_stopping(rule, reached, scalars, config.donate)
        stops = run.should_stop(reached) and not due.ends
    if stops:  # the end of a run is a log point and has a validation
        reached, more = yield from _measure(
            run, reached, zeros, not due.logs, not due.validates
        )
        scalars |= more
    if scalars:
        yield Phase.LOGGING, reached
        for logger in run.loggers:
            logger.log(cycle, dict(scalars))
        run.bar.set_postfix_str(format_losses(scalars), refresh=False)
    if due.logs and reached.records and config.policy is None:
        losses, first = metrics.newly_nonfinite(reached.records)
        if losses:
            note = nonfinite.NOTE.format(losses=", ".join(losses))
            heard = send_note(run.loggers, cycle, note)
            if first and not heard and run.is_primary:
                warn(f"Cycle {cycle}: {note}.")
    if run.writer is not None and (due.saves or due.ends or asked or stops):
        yield Phase.CHECKPOINT, reached
        positions = reached.positions
        if run.multi_process:
            positions = gather_positions(positions)
        if due.saves:  # a run that is resumed here goes back to this state itself
            reached = reached._replace(rewind_to=None)
        resume.save(run.writer, reached, rule, positions, scalars)
    if due.saves and config.policy is Policy.RESTORE:
        reached = reached._replace(rewind_to=run.keep(reached.point.state))
    if rule and stops:
        run.bar.set_postfix_str("stopped early", refresh=False)
        send_note(run.loggers, cycle, stop_reason(rule, reached.best))
    if due.logs:
        reached = reached._replace(clock=(cycle, time.perf_counter()))
    return reached


def _raise_if_nonfinite(reached: RunState) -> Iterator[tuple[Phase, RunState]]:
    """Raise FloatingPointError if a cycle was not finite, and so was not used.

    The error then has the state before that cycle.
    """
    point = reached.point
    sums, counts, squares = point.totals
    counts = jax.device_get(counts)
    unused = int(counts[nonfinite.CYCLES])
    if not unused:
        return
    good = point.cycle - unused
    zeros = {name: 0 * count for name, count in counts.items()}
    totals = Totals(sums, zeros, squares)
    fallback = Point(good, point.state, totals, point.since)
    yield Phase.STEP, reached._replace(points=(fallback,), fallback=fallback)
    raise FloatingPointError(nonfinite.describe_nonfinite(counts, good + 1))


def _measure(
    run: Run, reached: RunState, zeros: Totals, logs: bool, validates: bool
) -> Generator[tuple[Phase, RunState], None, tuple[RunState, dict[str, float]]]:
    """Record means and scores if they are due, and return the scalars as well."""
    config, scalars = run.config, {}
    if logs:
        reached, scalars = metrics.record_means(reached, zeros)
    if validates and config.validation is not None:
        yield Phase.VALIDATION, reached
        before = reached.validations
        record = metrics.validate(
            config.validation, reached.point, before, run.multi_process
        )
        reached = reached._replace(validations=Rows(record, before))
        yield Phase.VALIDATION, reached
        scores = {n: float(x) for n, x in record.items() if n != "validation/cycle"}
        if config.checkpoint is not None and config.checkpoint.of_scores:
            check_best(config.checkpoint, scores)
        scalars |= scores
    return reached, scalars
