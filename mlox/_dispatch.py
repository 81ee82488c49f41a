"""Dispatches: cycles compiled into one program, and the batches that they take."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlox import _data

State = Any


class Steps(Protocol):
    """What the loop needs of an engine: a frozen value that hashes and compares.

    It should hold no arrays, as compiled programs keep it alive.
    """

    def __call__(self, state: Any, batches: Any) -> tuple[Any, dict[str, jax.Array]]:
        """Make one cycle: a pure function."""
        ...

    @property
    def steps_per_cycle(self) -> Mapping[str, int]:
        """The number of steps that each problem makes in one cycle."""
        ...


# Compiled programs. They are kept by the engine's value, so that a second run does not
# trace, and few, so that old engines are let go.


@functools.lru_cache(maxsize=16)
def _cycle(engine: Steps) -> Callable[[State, Any], tuple[State, Any]]:
    """Jit one cycle, for its cache of traces: every program here uses one trace."""
    return jax.jit(engine, inline=True)


@functools.lru_cache(maxsize=16)
def compiled(
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
def zero_totals(engine: Steps, count: int) -> Callable[[State, Any], Any]:
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


def copied(state: State) -> State:
    return jax.tree.map(jnp.copy, state)


def gather(engine: Steps, sources: dict[str, Iterator[Any]], count: int) -> Any:
    """Stack the batches of a dispatch and start their way to the device."""
    cycles = None if count == 1 else count
    return jax.device_put(_data.stack(engine.steps_per_cycle, sources, cycles))


def lengths(train_iters: int, cycles_per_dispatch: int) -> list[int]:
    """Split the cycles into dispatches: all of one length, but for the last one."""
    full, rest = divmod(train_iters, cycles_per_dispatch)
    return [cycles_per_dispatch] * full + [rest] * (rest > 0)
