"""A job of four processes of which one is lost: when the others stop, and go on again.

Run with `python benchmarks/killed.py`; `scaling.py` runs it, too. Four processes train
together over the loopback address, with checkpoints. One of them is killed (SIGKILL),
or frozen (SIGSTOP: as if its host had disappeared), in the middle of the run. What is
timed: how long until the other three have ended by themselves, each with an error; and,
after all four were started again by the same command, how long until the run goes on
from its newest checkpoint, and has ended. Its result must be, bit for bit, that of a
run that was never interrupted.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import _environments
import _jobs
import _timing
import jax
import numpy as np
from jax.sharding import Mesh

import mlox

COUNT, CYCLES, EVERY, LOST_AT = 4, 40, 10, 25
TIMEOUTS = {"heartbeat_timeout_seconds": 10, "shutdown_timeout_seconds": 10}
BOUND = sum(TIMEOUTS.values())
"""Seconds within which the others end: one time-out to see it, and one to leave."""
PATIENCE = 300
"""Seconds after which a process is given up."""


class Loss(NamedTuple):
    """How a process is lost.

    Attributes:
        what: What the table says.
        process: Its index; process 0 is the coordinator of the others.
        signal: What it is sent.
    """

    what: str
    process: int
    signal: signal.Signals


LOSSES = (
    Loss("process 2 is killed", 2, signal.SIGKILL),
    Loss("process 0, the coordinator, is killed", 0, signal.SIGKILL),
    Loss("process 2 is frozen", 2, signal.SIGSTOP),
)
ERRORS = re.compile(
    r"RunError: .*|Terminating process because .*|The following tasks are unhealthy .*"
)


class Line:
    """A logger that prints where the run is."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print the cycle."""
        del metrics
        print(f"cycle {step}", flush=True)

    def close(self) -> None:
        """Close nothing."""


def train(index: int, port: int, folder: Path) -> None:
    """Train as one process of the job, from the newest checkpoint; print a checksum."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", COUNT, index, **TIMEOUTS)
    job = _jobs.mlp(5, mlox.FiniteDifference(), width=64)
    engine = _jobs.engine(job)

    def share(batches: Any) -> Any:
        """Take this process's examples of all batches, for it to shuffle."""
        rows = jax.tree.map(lambda x: np.concatenate(np.asarray(x)), batches)
        return jax.tree.map(lambda x: x[index::COUNT], rows)

    data = {
        name: mlox.shuffled(share(batches), 25, seed=seed)
        for seed, (name, batches) in enumerate(sorted(job.batches.items()))
    }
    mesh = Mesh(np.array(jax.devices()), ("data",))
    state, _ = engine.run(
        mlox.shard(engine, engine.init(), mesh, "fsdp"),
        data,
        CYCLES,
        log_every=1,
        loggers=(Line(),),
        progress=False,
        checkpoint=mlox.Checkpoint(folder, every=EVERY),
        resume=True,
    )
    print(f"checksum {checksum(state)}", flush=True)


def checksum(state: Any) -> str:
    """Return a checksum of the parts of a state that this process has."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        for part in leaf.addressable_shards:
            found.update(np.asarray(part.data).tobytes())
    return found.hexdigest()[:16]


class Process:
    """A process of a job: what it prints can be waited for."""

    def __init__(self, index: int, port: int, folder: Path) -> None:
        self.errors = folder / f"errors-{index}.txt"
        self.lines: queue.Queue[str] = queue.Queue()
        command = [sys.executable, __file__, f"--process={index},{port}"]
        with self.errors.open("w") as stream:
            self.process = subprocess.Popen(
                [*command, f"--folder={folder / 'run'}"],
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=_environments.variables(),
            )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.put(line.strip())
        self.lines.put("")

    def wait_for(self, start: str) -> str:
        """Return the rest of the next line with a start."""
        while line := self.lines.get(timeout=PATIENCE):
            if line.startswith(start):
                return line.removeprefix(start)
        raise RuntimeError(f"no {start!r}:\n{self.errors.read_text()[-3000:]}")

    def wait(self) -> float:
        """Wait until it has ended by itself, and return the moment."""
        self.process.wait(PATIENCE)
        return time.monotonic()

    def said(self) -> list[str]:
        """Return the lines about its errors."""
        return ERRORS.findall(self.errors.read_text())


def started(folder: Path) -> list[Process]:
    """Start the job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [Process(index, port, folder) for index in range(COUNT)]


def end(job: list[Process]) -> None:
    for one in job:
        one.process.kill()
        one.process.wait()
        one.reader.join()


def whole(folder: Path) -> dict[str, Any]:
    """Run the job to its end, from the newest checkpoint in the folder."""
    begun = time.monotonic()
    job = started(folder)
    try:
        cycle = int(job[0].wait_for("cycle "))
        first = time.monotonic() - begun
        sums = [one.wait_for("checksum ") for one in job]
        seconds = max(one.wait() for one in job) - begun
    finally:
        end(job)
    return {"cycle": cycle, "first": first, "seconds": seconds, "sums": sums}


def lose(loss: Loss, folder: Path) -> dict[str, Any]:
    """Run the job, lose a process, and say when the others have ended, and how."""
    job = started(folder)
    others = [one for index, one in enumerate(job) if index != loss.process]
    try:
        while int(job[0].wait_for("cycle ")) < LOST_AT:
            continue
        lost = time.monotonic()
        os.kill(job[loss.process].process.pid, loss.signal)
        with concurrent.futures.ThreadPoolExecutor(COUNT) as pool:
            ended = list(pool.map(Process.wait, others))
    finally:
        end(job)
    return {
        "stopped": max(ended) - lost,
        "codes": [one.process.returncode for one in others],
        "said": [one.said() for one in others],
    }


def measure(losses: tuple[Loss, ...] = LOSSES) -> dict[str, Any]:
    """Lose processes; say when the others stopped, and when the run had gone on."""
    with tempfile.TemporaryDirectory() as name:
        folders = _folders(Path(name))
        expected = whole(next(folders))
        rows = []
        for loss in losses:
            folder = next(folders)
            row = {"what": loss.what, **lose(loss, folder)}
            again = whole(folder)
            row |= {key: again[key] for key in ("cycle", "first", "seconds")}
            rows.append(row | {"same": again["sums"] == expected["sums"]})
    sizes = {"processes": COUNT, "cycles": CYCLES, "every": EVERY, "lost at": LOST_AT}
    return {**sizes, "timeouts": TIMEOUTS, "whole": expected, "rows": rows}


def _folders(parent: Path) -> Iterator[Path]:
    for number in range(1 + len(LOSSES)):
        folder = parent / str(number)
        folder.mkdir()
        yield folder


def table(found: Mapping[str, Any]) -> str:
    """Render what was measured."""
    head = ["", "the others have ended", "goes on at cycle", "after", "has ended"]
    first = found["whole"]
    times = (f"{first[key]:.1f} s" for key in ("first", "seconds"))
    rows = [["never interrupted", "-", str(first["cycle"]), *times, "-"]]
    for row in found["rows"]:
        times = (f"{row[key]:.1f} s" for key in ("first", "seconds"))
        same = "yes" if row["same"] else "no"
        stopped = f"{row['stopped']:.1f} s"
        rows.append([row["what"], stopped, str(row["cycle"]), *times, same])
    return _timing.table([*head, "same bits"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--process", help="for the processes that this program starts")
    parser.add_argument("--folder", type=Path, help="for these, too")
    arguments = parser.parse_args()
    if arguments.process:
        index, port = map(int, arguments.process.split(","))
        train(index, port, arguments.folder)
        return
    found = measure()
    print(table(found))
    for row in found["rows"]:
        print(row["what"], row["codes"], *row["said"], sep="\n  ")


if __name__ == "__main__":
    main()
