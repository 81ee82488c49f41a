"""Faults inside a run: its numbers, its data, its hooks, its devices."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.dynamic_scale import DynamicScale

import mlox

from ..small import ZEROS, pair, problem
from .fault import Fault, Outcome, describe_end, table

CYCLES, BAD = 5, 3


def fit_loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
    return jnp.sum((params - batch) ** 2)


ENGINE = mlox.Engine([problem("fit", loss_fn=fit_loss)])


def faults() -> list[Fault]:
    return [*_numbers(), *_answers(), *_data(), *_hooks()]


def run(data: Any, engine: mlox.Engine = ENGINE, **options: Any) -> Any:
    given = {"train_iters": CYCLES, "log_every": 1, "loggers": (), **options}
    return engine.run(engine.init(), {"fit": data}, progress=False, **given)


def batches(bad: float) -> list[np.ndarray]:
    """Make one batch for each cycle; that of cycle BAD is bad."""
    values = [bad if i + 1 == BAD else 0.1 * i for i in range(CYCLES)]
    return [np.full(2, value, np.float32) for value in values]


GOOD = batches(0.5)


def _numbers() -> list[Fault]:
    def nan(**options: Any) -> Callable[[pathlib.Path], Outcome]:
        return lambda folder: describe_end(
            folder, lambda: run(batches(math.nan), **options)
        )

    def restore(folder: pathlib.Path) -> Outcome:
        checkpoint = mlox.Checkpoint(folder, every=1)
        return describe_end(
            folder,
            lambda: run(
                batches(math.nan), checkpoint=checkpoint, on_nonfinite="restore"
            ),
        )

    def slope(folder: pathlib.Path) -> Outcome:
        """Take the slope of a square root at zero, where it is infinite."""
        root = mlox.Engine([problem("fit", loss_fn=_root)])
        return describe_end(
            folder, lambda: run(batches(0.0), root, on_nonfinite="raise")
        )

    def always(folder: pathlib.Path) -> Outcome:
        data = [np.full(2, math.nan, np.float32)]
        return describe_end(folder, lambda: run(data, on_nonfinite="skip"))

    def born(folder: pathlib.Path) -> Outcome:
        sick = mlox.Engine([problem("fit", params=ZEROS + math.nan)])
        return describe_end(folder, lambda: run(None, sick, on_nonfinite="raise"))

    def noted(folder: pathlib.Path) -> Outcome:
        lines: list[str] = []
        found = describe_end(
            folder, lambda: run(batches(math.nan), loggers=[_Notes(lines)])
        )
        return Outcome(f"{found.action}; notes: {lines[0]}", found.remains)

    def overflow(folder: pathlib.Path) -> Outcome:
        scale = DynamicScale(scale=2.0**30)
        half = mlox.MixedPrecision(fit_loss, jnp.float16)
        engine = mlox.Engine([problem("fit", loss_fn=half, loss_scale=scale)])
        state, history = run(GOOD, engine, on_nonfinite="raise")
        fell = float(state["fit"].loss_scale.scale) < 2.0**30
        action = "leaves the updates out and lowers the scale" if fell else "nothing"
        return Outcome(
            action, f"finite losses: {bool(np.isfinite(history['fit/loss']).all())}"
        )

    return table(
        "Numbers that are not finite",
        [
            (
                "a NaN batch in cycle 3, no policy",
                noted,
                "until cycle 5; notes: fit/loss.*on_nonfinite.*cycle 3",
                "last state, not finite; .*1, 2, 3, 4, 5",
            ),
            (
                "the same, loggers=()",
                nan(),
                "warns: Cycle 3: fit/loss.*on_nonfinite.*until cycle 5",
                "last state, not finite; .*1, 2, 3, 4, 5",
            ),
            (
                "the same, on_nonfinite='raise'",
                nan(on_nonfinite="raise"),
                "RunError: .*step of cycle 3.*FloatingPointError: .*'fit'.*='skip'",
                "after cycle 2, finite; .*cycles 1, 2$",
            ),
            (
                "the same, on_nonfinite='skip'",
                nan(on_nonfinite="skip"),
                "until cycle 5, 1 of them",
                "last state, finite; .*1, 2, 3, 4, 5",
            ),
            (
                "the same, on_nonfinite='restore'",
                restore,
                "until cycle 5, 1 of them",
                "last state, finite; .*1, 2, 3, 4, 5",
            ),
            (
                "the same, 'raise', log points every 5 cycles",
                nan(on_nonfinite="raise", log_every=5),
                "RunError: .*step of cycle 3.*FloatingPointError: .*'fit'.*='skip'",
                "after cycle 2, finite; .*cycles 2$",
            ),
            (
                "the same, 'raise', two cycles in a dispatch",
                nan(on_nonfinite="raise", cycles_per_dispatch=2),
                "RunError: .*cycles 3 to 4.*FloatingPointError: .*'fit'.*cycle 3",
                "after cycle 2, finite; .*cycles 2$",
            ),
            (
                "the same, 'raise', donate=True",
                nan(on_nonfinite="raise", donate=True),
                "RunError: .*step of cycle 3.*FloatingPointError: .*'fit'.*='skip'",
                "after cycle 2, finite; .*cycles 1, 2$",
            ),
            (
                "a finite loss with an infinite gradient, 'raise'",
                slope,
                "RunError: .*step of cycle 1.*FloatingPointError: .*'fit'.*cycle 1",
                "after cycle 0, finite; no metrics",
            ),
            (
                "NaN in every cycle, 'skip'",
                always,
                "until cycle 5, 5 of them",
                "last state, finite; .*1, 2, 3, 4, 5",
            ),
            (
                "NaN in the params from the start, 'raise'",
                born,
                "RunError: .*step of cycle 1.*FloatingPointError: .*'fit'.*cycle 1",
                "after cycle 0, not finite; no metrics",
            ),
            (
                "an overflow in float16, with a loss_scale",
                overflow,
                "leaves the updates out and lowers the scale",
                "True",
            ),
        ],
    )


def _answers() -> list[Fault]:
    def lags(folder: pathlib.Path, **fit: Any) -> Outcome:
        lower = {"params": ZEROS + 0.1, "tx": optax.sgd(1e-4), **fit}
        engine = pair(lower, {"tx": optax.sgd(0.01)})
        ones = [np.ones(2, np.float32)]
        return describe_end(
            folder, lambda: run(ones, engine, train_iters=24, log_every=8)
        )

    short = mlox.Implicit(mlox.Neumann(iterations=1, step=0.01))
    return table(
        "Answers that are not there yet",
        [
            (
                "a lower with a step that is much too small",
                lags,
                "warns: Cycle 24: 'fit' lags behind 'penalty'.*until cycle 24",
                "last state, finite; .*8, 16, 24",
            ),
            (
                "a solver with too few and too small steps",
                lambda folder: lags(folder, tx=optax.sgd(0.2), method=short),
                "warns: Cycle 16: .*system of 'fit' for 'penalty' is not solved",
                "last state, finite; .*8, 16, 24",
            ),
        ],
    )


def _root(params: Any, batch: Any, ctx: mlox.Context) -> Any:
    odd = jnp.sum(jnp.sqrt(jnp.abs(params * batch)))
    return jnp.where(batch[0] == 0, odd, 0.0) + jnp.sum(params**2)


class _Notes:
    """A logger that keeps the notes only."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def log(self, step: int, metrics: dict[str, float], /) -> None:
        return

    def close(self) -> None:
        return

    def note(self, step: int, text: str, /) -> None:
        self.lines.append(f"{text} (cycle {step})")


def _data() -> list[Fault]:
    def fed(data: Any, **options: Any) -> Callable[[pathlib.Path], Outcome]:
        return lambda folder: describe_end(folder, lambda: run(data(), **options))

    return table(
        "Data",
        [
            (
                "a loader that raises in cycle 3",
                fed(lambda: _until(OSError("gone"))),
                "RunError: .*data of cycle 3.*OSError: gone",
                "after cycle 2, finite; .*cycles 1, 2$",
            ),
            (
                "the same, two cycles in a dispatch",
                fed(lambda: _until(OSError("gone")), cycles_per_dispatch=2),
                "RunError: .*data of cycles 3 to 4.*OSError: gone",
                "after cycle 2, finite; .*cycles 2$",
            ),
            (
                "the same, donate=True",
                fed(lambda: _until(OSError("gone")), donate=True),
                "RunError: .*data of cycle 3.*OSError: gone",
                "after cycle 2, finite; .*cycles 1, 2$",
            ),
            (
                "an iterator that ends after cycle 2",
                fed(lambda: iter(GOOD[:2])),
                "RunError: .*data of cycle 3.*'fit' ran out after 2 .*itertools",
                "after cycle 2, finite; .*cycles 1, 2$",
            ),
            (
                "Ctrl-C in a loader",
                fed(lambda: _until(KeyboardInterrupt())),
                "RunInterrupted: .*data of cycle 3.*KeyboardInterrupt",
                "after cycle 2, finite; .*cycles 1, 2$",
            ),
            (
                "a batch of another structure in cycle 3",
                fed(lambda: [*GOOD[:2], (GOOD[2],)]),
                r"RunError: .*step of cycle 3.*'fit'.*batch=\('float32\[2\]',\)",
                "after cycle 2, finite; .*cycles 1, 2$",
            ),
            (
                "a batch of strings in cycle 3",
                fed(lambda: [*GOOD[:2], "text"]),
                "RunError: .*data of cycle 3.*'fit'.*type str",
                "after cycle 2, finite; .*cycles 1, 2$",
            ),
            (
                "a call at the end of a pass that raises",
                fed(lambda: mlox.on_epoch_end(GOOD[:2], _fails)),
                "RunError: .*data of cycle 3.*RuntimeError: no answer",
                "after cycle 2, finite; .*cycles 1, 2$",
            ),
        ],
    )


def _until(error: BaseException) -> Iterator[Any]:
    yield from GOOD[:2]
    raise error


def _fails(*_: Any) -> Any:
    raise RuntimeError("no answer")


def _hooks() -> list[Fault]:
    def hooked(**options: Any) -> Callable[[pathlib.Path], Outcome]:
        return lambda folder: describe_end(folder, lambda: run(GOOD, **options))

    def late(state: Any) -> Any:
        return _fails() if int(state["fit"].step) == BAD else {"error": 0.5}

    rule = mlox.EarlyStopping("validation/error", "min", patience=2)
    nan = lambda state: {"error": math.nan}
    return table(
        "Hooks and devices",
        [
            (
                "a validation that raises in cycle 3",
                hooked(validation=late),
                "RunError: .*validation after cycle 3.*RuntimeError: no answer",
                "after cycle 3, finite; .*cycles 1, 2, 3$",
            ),
            (
                "the same, donate=True",
                hooked(validation=late, donate=True),
                "RunError: .*validation after cycle 3.*RuntimeError: no answer",
                "after cycle 3, finite; .*cycles 1, 2, 3$",
            ),
            (
                "a logger that raises in cycle 3",
                hooked(loggers=[_Breaks(BAD)]),
                "RunError: .*logging after cycle 3.*OSError: the server is down",
                "after cycle 3, finite; .*cycles 1, 2, 3$",
            ),
            (
                "a logger that cannot be closed",
                hooked(loggers=[_Breaks(None)]),
                "RunError: .*closing loggers .*after cycle 5.*the server is down",
                "after cycle 5, finite; .*1, 2, 3, 4, 5",
            ),
            (
                "a logger that cannot be closed, after a validation that raised",
                hooked(loggers=[_Breaks(None)], validation=late),
                "RunError: .*validation after cycle 3.*no answer;.*the server is down",
                "after cycle 3, finite; .*cycles 1, 2, 3$",
            ),
            (
                "a score that is always NaN, with early stopping",
                hooked(validation=nan, early_stopping=rule),
                "runs until cycle 2",
                "last state, finite; .*cycles 1, 2$",
            ),
            (
                "a call from the device that raises in cycle 3",
                _simulator,
                "RunError: .*step of cycle 3.*the simulator has stopped",
                "after cycle 2, finite; .*cycles 1, 2$",
            ),
        ],
    )


class _Breaks:
    """A logger that fails at a cycle, or at its end."""

    def __init__(self, cycle: int | None) -> None:
        self.cycle = cycle

    def log(self, step: int, metrics: dict[str, float], /) -> None:
        if step == self.cycle:
            raise OSError("the server is down")

    def close(self) -> None:
        if self.cycle is None:
            raise OSError("the server is down")


def _simulator(folder: pathlib.Path) -> Outcome:
    """Let a simulator on the host, which a loss calls, fail in the third cycle."""

    def simulated(step: Any) -> Any:
        if int(step) == BAD - 1:
            raise RuntimeError("the simulator has stopped")
        return np.float32(0.0)

    def loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
        like = jax.ShapeDtypeStruct((), jnp.float32)
        found = jax.pure_callback(simulated, like, ctx.step)
        return fit_loss(params, batch, ctx) + jax.lax.stop_gradient(found)

    engine = mlox.Engine([problem("fit", loss_fn=loss)])
    return describe_end(folder, lambda: run(GOOD, engine))
