"""Timing of two programs beside each other, and what the compiler says of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

PyTree = Any
Step = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]


class Seconds(NamedTuple):
    """How long something took.

    Attributes:
        wall: By the clock.
        processor: On all cores together, which other jobs on the machine stretch less.
    """

    wall: float
    processor: float


Run = Callable[[int], Seconds]


class Compiled(NamedTuple):
    """A compiled program, and what it took to make it.

    Attributes:
        program: The executable.
        seconds: The time for tracing, lowering and compiling.
    """

    program: Any
    seconds: Seconds

    @property
    def flops(self) -> float:
        """Floating-point operations; XLA counts the body of a loop once."""
        return self.program.cost_analysis().get("flops", 0.0)

    @property
    def temporaries(self) -> int:
        """Bytes of temporary buffers, the peak beside arguments and results."""
        return self.program.memory_analysis().temp_size_in_bytes

    @property
    def facts(self) -> dict[str, float]:
        """What a side of a comparison says of its program, see `_side.Side`."""
        return {
            "compile": self.seconds.wall,
            "compile processor": self.seconds.processor,
            "flops": self.flops,
            "temporaries": self.temporaries,
        }


def compiled(
    function: Step,
    state: PyTree,
    batches: PyTree,
    options: Mapping[str, str | bool | int] | None = None,
) -> Compiled:
    """Trace, lower and compile a step with a donated state, from empty caches.

    `options` are the settings of XLA, as `jax.stages.Lowered.compile` takes them.
    """
    jax.clear_caches()
    wall, processor = time.perf_counter(), time.process_time()
    # A fresh function, so that nothing is found again by its identity either.
    fresh = jax.jit(lambda *args: function(*args), donate_argnums=0)
    program = fresh.lower(state, batches).compile(compiler_options=options)
    seconds = Seconds(time.perf_counter() - wall, time.process_time() - processor)
    return Compiled(program, seconds)


def many(step: Step, cycles: int) -> Step:
    """Return a step that makes some steps on the same batches, as one program."""

    def scanned(state: PyTree, batches: PyTree) -> tuple[PyTree, PyTree]:
        return jax.lax.scan(
            lambda state, _: step(state, batches), state, None, length=cycles
        )

    return scanned


def repeated(step: Step, state: PyTree, batches: PyTree) -> Run:
    """Return a function that takes some steps and says how long one of them took.

    Each step goes on from the state of the one before it, whose buffers it is given.
    """

    def run(times: int) -> Seconds:
        nonlocal state
        metrics = None
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(times):
            state, metrics = step(state, batches)
        jax.block_until_ready((state, metrics))
        return Seconds(
            (time.perf_counter() - wall) / times,
            (time.process_time() - processor) / times,
        )

    return run


def alternated(
    runs: Sequence[Run], seconds: float, sample: float = 0.01
) -> list[list[Seconds]]:
    """Time functions in turn, each round in another order.

    Args:
        runs: The functions, see `repeated`.
        seconds: How long to go on; five rounds are made at least, or three of those
            that last longer than this.
        sample: The seconds that one sample lasts about, at least one step.

    Returns:
        Seconds per step, of each round and function.
    """
    fastest = min(run(1).wall for run in runs)
    times = max(1, round(sample / fastest))
    least = 11 if len(runs) * times * fastest < seconds else 5
    rounds: list[list[Seconds]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < least or time.perf_counter() < end:
        order = np.roll(np.arange(len(runs)), len(rounds)).tolist()
        found = {i: runs[i](times) for i in order}
        rounds.append([found[i] for i in range(len(runs))])
    return rounds


def difference(first: PyTree, second: PyTree) -> float:
    """Return the largest difference of two pytrees, relative to each leaf's largest.

    Raises:
        FloatingPointError: If an entry is not finite.
        ValueError: If their structures differ.
    """

    def relative(one: jax.Array, other: jax.Array) -> float:
        found, expected = np.asarray(one), np.asarray(other)
        if not (np.isfinite(found).all() and np.isfinite(expected).all()):
            raise FloatingPointError("a parameter or metric is not finite")
        scale = np.abs(expected).max() or 1.0
        return float(np.abs(found - expected).max() / scale)

    return max(jax.tree.leaves(jax.tree.map(relative, first, second)))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table in Markdown."""
    lines = [list(head), ["-" * len(h) for h in head], *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def duration(seconds: float) -> str:
    """Format a duration with three digits and a unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
