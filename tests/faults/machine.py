"""Faults from outside of a run: signals, and disks."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import resource
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mlox

from ..small import problem
from .fault import Fault, Outcome, describe_end, table
from .runs import BAD, GOOD, run


def faults() -> list[Fault]:
    return [*_signals(), *_disks()]


def _signals() -> list[Fault]:
    def sent(number: int, saves: bool) -> Callable[[pathlib.Path], Outcome]:
        return lambda folder: _signalled(folder, number, saves)

    return table(
        "Signals",
        [
            (
                "SIGTERM in cycle 3, with a checkpoint",
                sent(signal.SIGTERM, True),
                "RunInterrupted: .*signal after cycle 4.*SIGTERM.*resume=True",
                "after cycle 4, finite; .*1, 2, 3, 4.*bit for bit",
            ),
            (
                "SIGINT (Ctrl-C) in cycle 3, with a checkpoint",
                sent(signal.SIGINT, True),
                "RunInterrupted: .*signal after cycle 4.*SIGINT.*resume=True",
                "after cycle 4, finite; .*1, 2, 3, 4.*bit for bit",
            ),
            (
                "SIGINT (Ctrl-C) in cycle 3, without one",
                sent(signal.SIGINT, False),
                "RunInterrupted: .*validation after cycle 3.*KeyboardInterrupt",
                "after cycle 3, finite; .*cycles 1, 2, 3$",
            ),
        ],
    )


def _signalled(folder: pathlib.Path, number: int, saves: bool) -> Outcome:
    """Send this process a signal while it computes, and go on after it."""

    def kill(state: Any) -> Any:
        if int(state["fit"].step) == BAD:
            os.kill(os.getpid(), number)
        return {"error": 0.5}

    checkpoint = mlox.Checkpoint(folder, every=2) if saves else None
    options = {"checkpoint": checkpoint, "valid_every": 1}
    with _default(signal.SIGINT, signal.default_int_handler):
        found = describe_end(folder, lambda: run(GOOD, validation=kill, **options))
    if not saves:
        return found
    state, history = run(
        GOOD, validation=lambda state: {"error": 0.5}, resume=True, **options
    )
    return Outcome(found.action, f"{found.remains}. {_resumed(state, history)}")


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
    return table(
        "Disks",
        [
            (
                "a disk that is full, at a checkpoint",
                _full_of_checkpoints,
                "RunError: .*the checkpoint after cycle 3.*OUT_OF_RANGE",
                "after cycle 3, finite; .*bit for bit.*True",
            ),
            (
                "a disk that is full, at a line of metrics.csv",
                _full_of_lines,
                "RunError: .*logging after cycle 2.*File too large.*csv_logger.*room",
                "after cycle 2, finite; .*of 3 lines .*whole: 1",
            ),
            (
                "the folder of checkpoints is deleted in cycle 3",
                _deleted,
                "runs until cycle 5",
                r"1, 2, 3, 4, 5; .*_1', 'cycle_2'\] elsewhere and \['cycle_3'.*5'\]",
            ),
            (
                "a last line of metrics.csv that was cut off",
                _cut_table,
                "drops it, and runs until cycle 5",
                r"\[1, 2, 3, 4, 5\]",
            ),
            (
                "a last line of metrics.jsonl that was cut off",
                _cut_lines,
                "drops it, and runs until cycle 5",
                r"\[1, 2, 3, 4, 5\]",
            ),
        ],
    )


@contextlib.contextmanager
def _room(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    shortest = jax.config.jax_persistent_cache_min_compile_time_secs
    # No program is written to the cache of JAX meanwhile: its entry would be torn.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", shortest)


def _full_of_checkpoints(folder: pathlib.Path) -> Outcome:
    """Fill the disk in the third cycle: checkpoints of 1 and 2 are there."""
    big = mlox.Engine(
        [problem("fit", params=jnp.ones(4096, jnp.float32), loss_fn=_noisy, rng=0)]
    )
    checkpoint = mlox.Checkpoint(folder, every=1, async_=False)
    room = contextlib.ExitStack()

    def fill(state: Any) -> Any:
        if int(state["fit"].step) == BAD:
            room.enter_context(_room(2048))
        return {"error": 0.5}

    with room:
        found = describe_end(
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
    remains = (
        f"{found.remains}. Resumed with room, it ends bit for bit as one run: {same}"
    )
    return Outcome(found.action, remains)


def _noisy(params: Any, batch: Any, ctx: mlox.Context) -> Any:
    noise = jax.random.normal(ctx.rng, params.shape, params.dtype)
    return jnp.sum((params - noise) ** 2)


def _full_of_lines(folder: pathlib.Path) -> Outcome:
    table = folder / "metrics.csv"
    logger = mlox.csv_logger(table)
    with _room(60):
        found = describe_end(folder, lambda: run(GOOD, loggers=[logger]))
    rows = len(table.read_text().splitlines())
    again = mlox.csv_logger(table)
    again.close()
    whole = len(table.read_text().splitlines()) - 1
    remains = (
        f"{found.remains}; of {rows} lines in the table, rows that are whole: {whole}"
    )
    return Outcome(found.action, remains)


def _deleted(folder: pathlib.Path) -> Outcome:
    checkpoint = mlox.Checkpoint(folder / "run", every=1, async_=False)

    def delete(state: Any) -> Any:
        if int(state["fit"].step) == BAD:
            (folder / "run").rename(folder / "elsewhere")
        return {"error": 0.5}

    found = describe_end(
        folder, lambda: run(GOOD, validation=delete, checkpoint=checkpoint)
    )
    there, here = (
        sorted(p.name for p in (folder / name / "checkpoints").iterdir())
        for name in ("elsewhere", "run")
    )
    return Outcome(
        found.action, f"{found.remains}; checkpoints {there} elsewhere and {here} there"
    )


def _cut(
    folder: pathlib.Path, name: str, logger: Any, cycle: Callable[[str], int]
) -> Outcome:
    """Stop after three cycles, cut the last line, and resume until the fifth."""
    file, checkpoint = folder / name, mlox.Checkpoint(folder / "run", every=1)
    run(GOOD, train_iters=BAD, loggers=[logger(file)], checkpoint=checkpoint)
    with file.open("a") as lines:
        lines.write(file.read_text().splitlines()[-1][:9])
    found = describe_end(
        folder,
        lambda: run(GOOD, loggers=[logger(file)], checkpoint=checkpoint, resume=True),
    )
    cycles = [cycle(line) for line in file.read_text().splitlines() if line[0] != "c"]
    return Outcome(f"drops it, and {found.action}", f"whole lines of cycles {cycles}")


def _cut_table(folder: pathlib.Path) -> Outcome:
    first = lambda line: int(line.split(",")[0])
    return _cut(folder, "metrics.csv", mlox.csv_logger, first)


def _cut_lines(folder: pathlib.Path) -> Outcome:
    named = lambda line: json.loads(line)["cycle"]
    return _cut(folder, "metrics.jsonl", mlox.json_logger, named)
