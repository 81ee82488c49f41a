"""Dispatches: cycles compiled into one program, and the batches that they take."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlox._data import stacking as _data
from mlox._run import nonfinite as _faults
from mlox._sharding.layout import Layout, split_batches
from mlox._utils.types import State


class Totals(NamedTuple):
    """What a log point makes means of.

    Attributes:
        sums: Of every metric, its means over the steps of a cycle summed up.
        counts: The cycles that were left out, see `mlox._run.nonfinite`.
    """

    sums: dict[str, jax.Array]
    counts: dict[str, jax.Array]

    @property
    def shown(self) -> list[str]:
        """The names of the metrics that loggers get: real scalars."""
        return shown({**self.sums, **self.counts})


def shown(metrics: Mapping[str, Any]) -> list[str]:
    """List the metrics that loggers get: real scalars."""
    return [n for n, m in metrics.items() if m.ndim == 0 and np.isrealobj(m)]


class Steps(_faults.Guarded, Protocol):
    """What the loop needs of an engine: a frozen value that hashes and compares.

    It should hold no arrays, as compiled programs keep it alive.
    """

    def __call__(self, state: Any, batches: Any) -> tuple[Any, dict[str, jax.Array]]:
        """Make one cycle: a pure function."""
        ...

    def check(self, state: Any) -> None:
        """Refuse a state with which no cycle can begin."""
        ...

    @property
    def steps_per_cycle(self) -> Mapping[str, int]:
        """The number of steps that each problem makes in one cycle."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """A description that JSON can hold, by which checkpoints are told apart."""
        ...


# Compiled programs. They are kept by the engine's value, so that a second run does not
# trace, and few, so that old engines are let go.


@functools.lru_cache(maxsize=16)
def _cycle(engine: Steps) -> Callable[[State, Any], tuple[State, Any]]:
    """Jit one cycle, for its cache of traces: every program here uses one trace."""
    return jax.jit(engine, inline=True)


@functools.lru_cache(maxsize=16)
def compiled(
    engine: Steps,
    count: int,
    donate: bool,
    policy: _faults.Policy | None,
    layout: Layout | None,
) -> Callable[[State, Totals, Any, State], tuple[State, Totals]]:
    """Compile `count` cycles that add the means over their steps to `totals`."""
    step = _cycle(engine)

    def kept(state: State, totals: Totals) -> tuple[State, Totals]:
        """Keep a state on a mesh as it is, and the sums where every process is."""
        if layout is None:
            return state, totals
        return layout.constrain(state), layout.replicate(totals)

    def program(
        state: State, totals: Totals, batches: Any, safe: State
    ) -> tuple[State, Totals]:
        def cycle(carry: tuple[State, Totals], batches: Any) -> tuple[Any, None]:
            before, totals = carry
            after, metrics = step(before, batches)
            means = {n: _mean(totals.sums[n], m) for n, m in metrics.items()}
            if policy is None:
                sums = {n: totals.sums[n] + mean for n, mean in means.items()}
                return kept(after, Totals(sums, {})), None
            after, counts, good = _faults.guarded(
                engine, policy, before, after, metrics, totals.counts, safe
            )
            sums = {n: totals.sums[n] + jnp.where(good, m, 0) for n, m in means.items()}
            return kept(after, Totals(sums, counts)), None

        if count == 1:
            return cycle((state, totals), batches)[0]
        # XLA may place what a loop carries elsewhere than what enters and leaves it.
        return kept(*lax.scan(cycle, (state, totals), batches, length=count)[0])

    return jax.jit(program, donate_argnums=(0,) if donate else ())


@functools.lru_cache(maxsize=16)
def zero_totals(
    engine: Steps, count: int, policy: _faults.Policy | None, layout: Layout | None
) -> Callable[[State, Any], Totals]:
    """Make the totals to start from, on the devices of the state.

    As the output of a program that keeps the (unused) state among its arguments they
    are placed just as the totals of a later dispatch are. Zeros from anywhere else
    would cost a second compilation if the state is committed or sharded.
    """
    step = _cycle(engine)

    def zeros(state: State, batches: Any) -> Totals:
        if count > 1:
            batches = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches
            )
        _, metrics = jax.eval_shape(step, state, batches)
        sums = {
            name: jnp.zeros(m.shape[1:], _sum_dtype(m.dtype))
            for name, m in metrics.items()
        }
        counts = {} if policy is None else _faults.counters(state, sums)
        totals = Totals(sums, counts)
        return totals if layout is None else layout.replicate(totals)

    return jax.jit(zeros, keep_unused=True)


def _sum_dtype(dtype: Any) -> Any:
    """Sum in the dtype of the metric, but in float32 what has no or few digits."""
    wide = jnp.issubdtype(dtype, np.inexact) and jnp.dtype(dtype).itemsize >= 4
    return dtype if wide else jnp.float32


def _mean(total: jax.Array, metric: jax.Array) -> jax.Array:
    return jnp.mean(metric, axis=0, dtype=total.dtype)


def copied(state: State) -> State:
    return jax.tree.map(jnp.copy, state)


def gather(
    engine: Steps,
    sources: Mapping[str, Iterator[Any]],
    count: int,
    layout: Layout | None,
) -> Any:
    """Stack the batches of a dispatch and start their way to the devices."""
    cycles = None if count == 1 else count
    batches = _data.stack_batches(engine.steps_per_cycle, sources, cycles)
    if layout is None:
        return jax.device_put(batches)
    return split_batches(batches, layout.mesh, axis=1 if cycles is None else 2)


def lengths(cycles: int, cycles_per_dispatch: int) -> Iterator[int]:
    """Split cycles into dispatches: all of one length, but for the last one."""
    full, rest = divmod(cycles, cycles_per_dispatch)
    # A list would take gigabytes for a run that is to last until it is stopped.
    yield from itertools.repeat(cycles_per_dispatch, full)
    if rest:
        yield rest
