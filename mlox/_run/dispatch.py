"""Dispatches: several cycles compiled into one program, and their batches."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlox._data import stacking as _data
from mlox._run.nonfinite import Policy, apply_policy, zero_counts
from mlox._sharding.layout import Layout, split_batches
from mlox._utils.types import Metrics, PyTree, State

LARGE = 2**28  # bytes


class Totals(NamedTuple):
    """Sums of metrics since the last log point.

    Attributes:
        sums: For each metric, its means over the steps of a cycle, summed over cycles.
        counts: The numbers of non-finite cycles, see `mlox._run.nonfinite`.
        squares: For each gap that is screened, see `mlox._run.health`, the squares of
            its means over the steps of a cycle, summed over cycles.
    """

    sums: dict[str, Any]
    counts: dict[str, Any]
    squares: dict[str, Any]


class Step(Protocol):
    """The part of an engine that a run needs: a frozen, hashable value.

    It must not have arrays, because caches of compiled programs keep it alive.
    """

    def __call__(self, state: State, batches: Any) -> tuple[State, Metrics]:
        """Run one cycle: a pure function."""
        ...

    def check(self, state: Any) -> None:
        """Raise if a state does not fit the engine."""

    def find_nonfinite(self, before: State, after: State, metrics: Metrics) -> Metrics:
        """Return, for each problem, whether a cycle produced non-finite numbers."""
        ...

    def rewind(self, to: State, after: State) -> State:
        """Return an earlier state, with the step counts of a later one."""
        ...

    def list_screened(self, state: State) -> tuple[tuple[str, str], ...]:
        """Return (upper, lower) for each answer whose gap can be judged."""
        ...

    def confirm(self, state: State, batches: Any, name: str) -> Metrics:
        """Return how far the answers below a problem are: a pure function."""
        ...

    @property
    def steps_per_cycle(self) -> Mapping[str, int]:
        """The optimizer steps of each problem in one cycle."""
        ...

    @property
    def reporters(self) -> Sequence[str]:
        """The problems whose metrics the step returns."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """A description of the engine for JSON, which checkpoints compare."""
        ...


# Compiled programs are cached by the value of the engine, so that a second run does not
# trace again. The caches are small, so that programs of old engines are freed.


@functools.lru_cache(maxsize=16)
def _jit_cycle(step: Step) -> Callable[[State, Any], tuple[State, Metrics]]:
    """Jit one cycle, so that all programs of this file share its trace."""
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
        """Constrain a state to its layout, and replicate the totals."""
        if layout is None:
            return state, totals
        return layout.constrain(state), layout.replicate(totals)

    def program(
        state: State, totals: Totals, batches: Any, rewind_to: State
    ) -> tuple[State, Totals]:
        def cycle(carry: tuple[State, Totals], batches: Any) -> tuple[Any, None]:
            before, (sums, counts, squares) = carry
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
            squares = {n: total + means[n] ** 2 for n, total in squares.items()}
            return constrain(after, Totals(sums, counts, squares)), None

        if count == 1:
            return cycle((state, totals), batches)[0]
        # XLA may place the carry of a loop differently from its input and output.
        return constrain(*lax.scan(cycle, (state, totals), batches, length=count)[0])

    return jax.jit(program, donate_argnums=(0,) if donate else ())


def make_zeros(
    step: Step,
    count: int,
    policy: Policy | None,
    layout: Layout | None,
    state: State,
    batches: Any,
) -> Totals:
    """Return the initial totals, placed like those of later dispatches.

    Zeros that are placed otherwise would cost a second compilation if the state is
    committed or sharded.
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
        counts = {} if policy is None else zero_counts(state, sums)
        gaps = [f"{upper}/{lower}/gap" for upper, lower in step.list_screened(state)]
        return Totals(sums, counts, {n: jnp.zeros_like(sums[n]) for n in gaps})

    like = jax.eval_shape(zeros, state, batches)
    leaves, structure = jax.tree.flatten(like)
    fill = _compile_fill(structure, tuple((x.shape, x.dtype) for x in leaves), layout)
    return fill(_find_committed(state, batches))


@functools.lru_cache(maxsize=16)
def _compile_fill(
    structure: Any, leaves: tuple[tuple[Any, Any], ...], layout: Layout | None
) -> Callable[[jax.Array], Totals]:
    """Compile a function to zeros, which are on the devices of its argument.

    The argument is used for nothing else. (Unused ones need `keep_unused=True`, with
    which JAX 0.12 never frees a program.)
    """

    def fill(anchor: jax.Array) -> Totals:
        zero = jnp.where(jnp.any(anchor != 0), 0, 0)
        zeros = [
            jnp.zeros(shape, dtype) + zero.astype(dtype) for shape, dtype in leaves
        ]
        totals = jax.tree.unflatten(structure, zeros)
        return totals if layout is None else layout.replicate(totals)

    return jax.jit(fill)


def _find_committed(state: State, batches: Any) -> jax.Array:
    """Return an array that is committed to its devices, if there is one."""
    arrays = [
        x
        for x in jax.tree.leaves((state, batches))
        if isinstance(x, jax.Array) and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    ]
    return next((x for x in arrays if x.committed), arrays[0])


@functools.lru_cache(maxsize=16)
def compile_confirmation(
    step: Step, name: str, count: int, layout: Layout | None
) -> Callable[[State, Any], Metrics]:
    """Compile `Step.confirm` for the first cycle of a dispatch of `count`."""

    def confirm(state: State, batches: Any) -> Metrics:
        if count > 1:
            batches = jax.tree.map(lambda x: x[0], batches)
        found = step.confirm(state, batches, name)
        return found if layout is None else layout.replicate(found)

    return jax.jit(confirm)


def _sum_dtype(dtype: Any) -> Any:
    """Return the dtype of a metric, or float32 if it is narrower or an integer."""
    wide = jnp.issubdtype(dtype, np.inexact) and jnp.dtype(dtype).itemsize >= 4
    return dtype if wide else jnp.float32


def _mean(metric: jax.Array, dtype: Any) -> jax.Array:
    return jnp.mean(metric, axis=0, dtype=dtype)


def scalar_names(metrics: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics for loggers, which are real scalars."""
    return [n for n, m in metrics.items() if m.ndim == 0 and np.isrealobj(m)]


def is_large(state: PyTree) -> bool:
    """Return whether a state is too large for two dispatches at a time.

    A step of such a state takes milliseconds, to which beginning it adds little, while
    a dispatch that waits in line takes the memory of one more state.
    """
    return sum(x.nbytes for x in jax.tree.leaves(state)) >= LARGE


def copy_state(state: PyTree) -> PyTree:
    """Return a copy of a state, so that one of the two can be donated."""
    return jax.tree.map(jnp.copy, state)


def stack_batches(
    step: Step, sources: Mapping[str, Iterator[Any]], count: int, layout: Layout | None
) -> Any:
    """Stack the batches of `count` cycles, and start their transfer to the devices."""
    cycles = None if count == 1 else count
    batches = _data.take_batches(step.steps_per_cycle, sources, cycles)
    if layout is not None:
        return split_batches(batches, layout.mesh, axis=1 if cycles is None else 2)
    # On CPU, where host and device share memory, passing NumPy arrays to the program is
    # faster. On other backends the transfer should start now.
    return batches if jax.default_backend() == "cpu" else jax.device_put(batches)


def dispatch_sizes(cycles: int, cycles_per_dispatch: int) -> Iterator[int]:
    """Split cycles into dispatches of equal length, except for the last one."""
    full, rest = divmod(cycles, cycles_per_dispatch)
    # Not a list, which would take gigabytes for a practically endless run.
    yield from itertools.repeat(cycles_per_dispatch, full)
    if rest:
        yield rest
