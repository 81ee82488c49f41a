"""Faults of runs: numbers, data, hooks, devices, signals, disks."""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import resource
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _fault import Fault, Handled, ending, of_area
from _small import ZEROS, problem
from flax.training.dynamic_scale import DynamicScale

import mlox

CYCLES, BAD = 5, 3


def fit_loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
    return jnp.sum((params - batch) ** 2)


ENGINE = mlox.Engine([problem("fit", loss_fn=fit_loss)])


def cases() -> list[Fault]:
    return [*_numbers(), *_data(), *_hooks(), *_signals(), *_disks()]


def run(data: Any, engine: mlox.Engine = ENGINE, **options: Any) -> Any:
    given = {"train_iters": CYCLES, "log_every": 1, "loggers": (), **options}
    return engine.run(engine.init(), {"fit": data}, progress=False, **given)


def batches(bad: float) -> list[np.ndarray]:
    """Make one batch for each cycle; that of cycle BAD is bad."""
    values = [bad if i + 1 == BAD else 0.1 * i for i in range(CYCLES)]
    return [np.full(2, value, np.float32) for value in values]


GOOD = batches(0.5)


def _numbers() -> list[Fault]:
    def nan(**options: Any) -> Callable[[pathlib.Path], Handled]:
        return lambda folder: ending(folder, lambda: run(batches(math.nan), **options))

    def kept_back(folder: pathlib.Path) -> Handled:
        checkpoint = mlox.Checkpoint(folder, every=1)
        return ending(
            folder,
            lambda: run(
                batches(math.nan), checkpoint=checkpoint, on_nonfinite="restore"
            ),
        )

    def slope(folder: pathlib.Path) -> Handled:
        """Take the slope of a square root at zero, where it is infinite."""
        root = mlox.Engine([problem("fit", loss_fn=_root)])
        return ending(folder, lambda: run(batches(0.0), root, on_nonfinite="raise"))

    def always(folder: pathlib.Path) -> Handled:
        data = [np.full(2, math.nan, np.float32)]
        return ending(folder, lambda: run(data, on_nonfinite="skip"))

    def born(folder: pathlib.Path) -> Handled:
        sick = mlox.Engine([problem("fit", params=ZEROS + math.nan)])
        return ending(folder, lambda: run(None, sick, on_nonfinite="raise"))

    def noted(folder: pathlib.Path) -> Handled:
        lines: list[str] = []
        found = ending(folder, lambda: run(batches(math.nan), loggers=[_Notes(lines)]))
        return Handled(f"{found.does}; notes: {lines[0]}", found.kept)

    def overflow(folder: pathlib.Path) -> Handled:
        scale = DynamicScale(scale=2.0**30)
        half = mlox.MixedPrecision(fit_loss, jnp.float16)
        engine = mlox.Engine([problem("fit", loss_fn=half, loss_scale=scale)])
        state, history = run(GOOD, engine, on_nonfinite="raise")
        fell = float(state["fit"].loss_scale.scale) < 2.0**30
        does = "leaves the updates out and lowers the scale" if fell else "nothing"
        return Handled(
            does, f"finite losses: {bool(np.isfinite(history['fit/loss']).all())}"
        )

    return of_area(
        "Numbers that are not finite",
        [
            ("a NaN batch in cycle 3, no policy", noted),
            ("the same, on_nonfinite='raise'", nan(on_nonfinite="raise")),
            ("the same, on_nonfinite='skip'", nan(on_nonfinite="skip")),
            ("the same, on_nonfinite='restore'", kept_back),
            (
                "the same, 'raise', log points every 5 cycles",
                nan(on_nonfinite="raise", log_every=5),
            ),
            (
                "the same, 'raise', two cycles in a dispatch",
                nan(on_nonfinite="raise", cycles_per_dispatch=2),
            ),
            ("the same, 'raise', donate=True", nan(on_nonfinite="raise", donate=True)),
            ("a finite loss with an infinite gradient, 'raise'", slope),
            ("NaN in every cycle, 'skip'", always),
            ("NaN in the params from the start, 'raise'", born),
            ("an overflow in float16, with a loss_scale", overflow),
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
    def fed(data: Any, **options: Any) -> Callable[[pathlib.Path], Handled]:
        return lambda folder: ending(folder, lambda: run(data(), **options))

    return of_area(
        "Data",
        [
            ("a loader that raises in cycle 3", fed(lambda: _until(OSError("gone")))),
            (
                "the same, two cycles in a dispatch",
                fed(lambda: _until(OSError("gone")), cycles_per_dispatch=2),
            ),
            (
                "the same, donate=True",
                fed(lambda: _until(OSError("gone")), donate=True),
            ),
            ("an iterator that ends after cycle 2", fed(lambda: iter(GOOD[:2]))),
            ("Ctrl-C in a loader", fed(lambda: _until(KeyboardInterrupt()))),
            (
                "a batch of another structure in cycle 3",
                fed(lambda: [*GOOD[:2], (GOOD[2],)]),
            ),
            ("a batch of strings in cycle 3", fed(lambda: [*GOOD[:2], "text"])),
            (
                "a call at the end of a pass that raises",
                fed(lambda: mlox.on_epoch_end(GOOD[:2], _fails)),
            ),
        ],
    )


def _until(error: BaseException) -> Iterator[Any]:
    yield from GOOD[:2]
    raise error


def _fails(*_: Any) -> Any:
    raise RuntimeError("no answer")


def _hooks() -> list[Fault]:
    def hooked(**options: Any) -> Callable[[pathlib.Path], Handled]:
        return lambda folder: ending(folder, lambda: run(GOOD, **options))

    def late(state: Any) -> Any:
        return _fails() if int(state["fit"].step) == BAD else {"error": 0.5}

    rule = mlox.EarlyStopping("validation/error", "min", patience=2)
    nan = lambda state: {"error": math.nan}
    return of_area(
        "Hooks and devices",
        [
            ("a validation that raises in cycle 3", hooked(validation=late)),
            ("the same, donate=True", hooked(validation=late, donate=True)),
            ("a logger that raises in cycle 3", hooked(loggers=[_Breaks(BAD)])),
            ("a logger that cannot be closed", hooked(loggers=[_Breaks(None)])),
            (
                "a logger that cannot be closed, after a validation that raised",
                hooked(loggers=[_Breaks(None)], validation=late),
            ),
            (
                "a score that is always NaN, with early stopping",
                hooked(validation=nan, early_stopping=rule),
            ),
            ("a call from the device that raises in cycle 3", _simulator),
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


def _simulator(folder: pathlib.Path) -> Handled:
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
    return ending(folder, lambda: run(GOOD, engine))


def _signals() -> list[Fault]:
    def sent(number: int, saves: bool) -> Callable[[pathlib.Path], Handled]:
        return lambda folder: _signalled(folder, number, saves)

    return of_area(
        "Signals",
        [
            ("SIGTERM in cycle 3, with a checkpoint", sent(signal.SIGTERM, True)),
            (
                "SIGINT (Ctrl-C) in cycle 3, with a checkpoint",
                sent(signal.SIGINT, True),
            ),
            ("SIGINT (Ctrl-C) in cycle 3, without one", sent(signal.SIGINT, False)),
        ],
    )


def _signalled(folder: pathlib.Path, number: int, saves: bool) -> Handled:
    """Send this process a signal while it computes, and go on after it."""

    def kill(state: Any) -> Any:
        if int(state["fit"].step) == BAD:
            os.kill(os.getpid(), number)
        return {"error": 0.5}

    checkpoint = mlox.Checkpoint(folder, every=2) if saves else None
    options = {"checkpoint": checkpoint, "valid_every": 1}
    with _default(signal.SIGINT, signal.default_int_handler):
        found = ending(folder, lambda: run(GOOD, validation=kill, **options))
    if not saves:
        return found
    state, history = run(
        GOOD, validation=lambda state: {"error": 0.5}, resume=True, **options
    )
    return Handled(found.does, f"{found.kept}. {_resumed(state, history)}")


def _resumed(state: Any, history: Any) -> str:
    whole, other = run(GOOD)
    equal = all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True)
    ) and np.array_equal(history["fit/loss"], other["fit/loss"])
    return "Resumed, it ends " + (
        "as if nothing had happened, bit for bit" if equal else "elsewhere"
    )


@contextlib.contextmanager
def _default(number: int, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _disks() -> list[Fault]:
    return of_area(
        "Disks",
        [
            ("a disk that is full, at a checkpoint", _full_of_checkpoints),
            ("a disk that is full, at a line of metrics.csv", _full_of_lines),
            ("the folder of checkpoints is deleted in cycle 3", _deleted),
            ("a last line of metrics.csv that was cut off", _cut_table),
            ("a last line of metrics.jsonl that was cut off", _cut_lines),
        ],
    )


@contextlib.contextmanager
def _room(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _full_of_checkpoints(folder: pathlib.Path) -> Handled:
    """Fill the disk in the third cycle: checkpoints of 1 and 2 are there."""
    big = mlox.Engine([problem("fit", params=jnp.ones(4096), loss_fn=_noisy, rng=0)])
    checkpoint = mlox.Checkpoint(folder, every=1, async_=False)
    room = contextlib.ExitStack()

    def fill(state: Any) -> Any:
        if int(state["fit"].step) == BAD:
            room.enter_context(_room(2048))
        return {"error": 0.5}

    with room:
        found = ending(
            folder, lambda: run(None, big, validation=fill, checkpoint=checkpoint)
        )
    state, _ = run(
        None,
        big,
        validation=lambda state: {"error": 0.5},
        checkpoint=checkpoint,
        resume=True,
    )
    whole, _ = run(None, big)
    same = bool(jnp.array_equal(state["fit"].params, whole["fit"].params))
    kept = f"{found.kept}. Resumed with room, it ends bit for bit as one run: {same}"
    return Handled(found.does, kept)


def _noisy(params: Any, batch: Any, ctx: mlox.Context) -> Any:
    noise = jax.random.normal(ctx.rng, params.shape, params.dtype)
    return jnp.sum((params - noise) ** 2)


def _full_of_lines(folder: pathlib.Path) -> Handled:
    table = folder / "metrics.csv"
    logger = mlox.csv_logger(table)
    with _room(60):
        found = ending(folder, lambda: run(GOOD, loggers=[logger]))
    rows = len(table.read_text().splitlines())
    again = mlox.csv_logger(table)
    again.close()
    whole = len(table.read_text().splitlines()) - 1
    kept = f"{found.kept}; {rows} lines are in the table, {whole} whole rows stay"
    return Handled(found.does, kept)


def _deleted(folder: pathlib.Path) -> Handled:
    checkpoint = mlox.Checkpoint(folder / "run", every=1, async_=False)

    def delete(state: Any) -> Any:
        if int(state["fit"].step) == BAD:
            (folder / "run").rename(folder / "elsewhere")
        return {"error": 0.5}

    found = ending(folder, lambda: run(GOOD, validation=delete, checkpoint=checkpoint))
    there = sorted(p.name for p in (folder / "elsewhere").iterdir())
    return Handled(found.does, f"{found.kept}; elsewhere the checkpoints {there}")


def _cut(folder: pathlib.Path, name: str, logger: Any) -> Handled:
    """Stop after three cycles, cut the last line, and resume until the fifth."""
    file, checkpoint = folder / name, mlox.Checkpoint(folder / "run", every=1)
    run(GOOD, train_iters=BAD, loggers=[logger(file)], checkpoint=checkpoint)
    with file.open("a") as lines:
        lines.write(file.read_text().splitlines()[-1][:9])
    found = ending(
        folder,
        lambda: run(GOOD, loggers=[logger(file)], checkpoint=checkpoint, resume=True),
    )
    lines = file.read_text().splitlines()
    return Handled(f"drops it, and {found.does}", f"{len(lines)} lines, all whole")


def _cut_table(folder: pathlib.Path) -> Handled:
    return _cut(folder, "metrics.csv", mlox.csv_logger)


def _cut_lines(folder: pathlib.Path) -> Handled:
    return _cut(folder, "metrics.jsonl", mlox.json_logger)
