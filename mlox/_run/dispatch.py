"""Dispatches: cycles compiled into one program, and the batches that they take."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlox._data import stacking as _data
from mlox._run.nonfinite import Policy, apply_policy, zero_counts
from mlox._sharding.layout import Layout, split_batches
from mlox._utils.types import Metrics, PyTree, State


class Totals(NamedTuple):
    """The sums from which a log point makes means.

    Attributes:
        sums: For each metric, its means over the steps of a cycle, summed over cycles.
        counts: How many cycles were not finite, see `mlox._run.nonfinite`.
    """

    sums: dict[str, Any]
    counts: dict[str, Any]


class Step(Protocol):
    """What a run needs of an engine: a frozen value that hashes and compares.

    It should hold no arrays, as compiled programs keep it alive.
    """

    def __call__(self, state: State, batches: Any) -> tuple[State, Metrics]:
        """Run one cycle: a pure function."""
        ...

    def check(self, state: Any) -> None:
        """Raise an error if no cycle can begin with a state."""

    def find_nonfinite(self, before: State, after: State, metrics: Metrics) -> Metrics:
        """Return for each problem whether a cycle made numbers that are not finite."""
        ...

    def rewind(self, to: State, after: State) -> State:
        """Return an earlier state, with the counts of steps of a later one."""
        ...

    @property
    def steps_per_cycle(self) -> Mapping[str, int]:
        """The number of steps that each problem makes in one cycle."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """A description for JSON, which tells checkpoints of other engines apart."""
        ...


# Compiled programs are cached by the value of the engine, so that a second run does not
# trace. The caches are small, so that programs of old engines are freed.


@functools.lru_cache(maxsize=16)
def _jit_cycle(step: Step) -> Callable[[State, Any], tuple[State, Metrics]]:
    """Jit one cycle, for its cache of traces: every program here uses one trace."""
    return jax.jit(step, inline=True)


@functools.lru_cache(maxsize=16)
def compile_cycles(
    step: Step, count: int, donate: bool, policy: Policy | None, layout: Layout | None
) -> Callable[[PyTree, Totals, Any, PyTree], tuple[PyTree, Totals]]:
    """Compile `count` cycles that add the means over their steps to the totals.

    Returns:
        (state, totals, batches, state of the last checkpoint) -> (state, totals).
    """
    run_cycle = _jit_cycle(step)

    def constrain(state: State, totals: Totals) -> tuple[State, Totals]:
        """Leave a state on a mesh as it was placed, and totals on every device."""
        if layout is None:
            return state, totals
        return layout.constrain(state), layout.replicate(totals)

    def program(
        state: State, totals: Totals, batches: Any, rewind_to: State
    ) -> tuple[State, Totals]:
        def cycle(carry: tuple[State, Totals], batches: Any) -> tuple[Any, None]:
            before, (sums, counts) = carry
            after, metrics = run_cycle(before, batches)
            means = {n: _mean(m, sums[n].dtype) for n, m in metrics.items()}
            if policy is not None:
                nonfinite = step.find_nonfinite(before, after, metrics)
                instead = before
                if policy is not Policy.RAISE:
                    to = rewind_to if policy is Policy.RESTORE else before
                    instead = step.rewind(to, after)
                after, counts, used = apply_policy(
                    policy, nonfinite, counts, after, instead
                )
                means = {n: jnp.where(used, mean, 0) for n, mean in means.items()}
            sums = {n: sums[n] + mean for n, mean in means.items()}
            return constrain(after, Totals(sums, counts)), None

        if count == 1:
            return cycle((state, totals), batches)[0]
        # XLA may place what a loop carries elsewhere than what enters and leaves it.
        return constrain(*lax.scan(cycle, (state, totals), batches, length=count)[0])

    return jax.jit(program, donate_argnums=(0,) if donate else ())


@functools.lru_cache(maxsize=16)
def compile_zeros(
    step: Step, count: int, policy: Policy | None, layout: Layout | None
) -> Callable[[PyTree, Any], Totals]:
    """Compile a function of state and batches to the totals to start from.

    As the output of a program that keeps the (unused) state among its arguments they
    are placed just as the totals of a later dispatch are. Zeros from anywhere else
    would cost a second compilation if the state is committed or sharded.
    """
    run_cycle = _jit_cycle(step)

    def zeros(state: State, batches: Any) -> Totals:
        if count > 1:
            batches = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches
            )
        _, metrics = jax.eval_shape(run_cycle, state, batches)
        sums = {
            name: jnp.zeros(m.shape[1:], _sum_dtype(m.dtype))
            for name, m in metrics.items()
        }
        totals = Totals(sums, {} if policy is None else zero_counts(state, sums))
        return totals if layout is None else layout.replicate(totals)

    return jax.jit(zeros, keep_unused=True)


def _sum_dtype(dtype: Any) -> Any:
    """Return the dtype of a metric, or float32 if it has no or few digits."""
    wide = jnp.issubdtype(dtype, np.inexact) and jnp.dtype(dtype).itemsize >= 4
    return dtype if wide else jnp.float32


def _mean(metric: jax.Array, dtype: Any) -> jax.Array:
    return jnp.mean(metric, axis=0, dtype=dtype)


def scalar_names(metrics: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics that loggers get: real scalars."""
    return [n for n, m in metrics.items() if m.ndim == 0 and np.isrealobj(m)]


def copy_state(state: PyTree) -> PyTree:
    """Return a copy of a state, of which one can be donated."""
    return jax.tree.map(jnp.copy, state)


def stack_batches(
    step: Step, sources: Mapping[str, Iterator[Any]], count: int, layout: Layout | None
) -> Any:
    """Stack the batches of `count` cycles, and start their way to the devices."""
    cycles = None if count == 1 else count
    batches = _data.stack_batches(step.steps_per_cycle, sources, cycles)
    if layout is not None:
        return split_batches(batches, layout.mesh, axis=1 if cycles is None else 2)
    # Where host and device share their memory, the program itself takes NumPy's arrays
    # faster; elsewhere the copy should start now.
    return batches if jax.default_backend() == "cpu" else jax.device_put(batches)


def dispatch_sizes(cycles: int, cycles_per_dispatch: int) -> Iterator[int]:
    """Split cycles into dispatches: all of one length, but for the last one."""
    full, rest = divmod(cycles, cycles_per_dispatch)
    # A list would take gigabytes for a run that is to last until it is stopped.
    yield from itertools.repeat(cycles_per_dispatch, full)
    if rest:
        yield rest
