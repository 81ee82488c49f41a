"""Kill runs at random moments, resume them, and compare with a run in one go."""

from __future__ import annotations

import concurrent.futures
import csv
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import event_files
from . import job

JOB = pathlib.Path(__file__).with_name("job.py")
SPEED = "cycles_per_second"
MOMENTS = ("before the first checkpoint", "within a save", "between saves")


class Moment(NamedTuple):
    """When to kill.

    Attributes:
        lines: After how many lines of the process; the first says that it is ready.
        seconds: The time after that line.
    """

    lines: int
    seconds: float


class Chain(NamedTuple):
    """A run that was killed, perhaps several times, and went on to its end.

    Attributes:
        kind: Of the job.
        kills: What each kill met, of `MOMENTS`.
        differences: From the run that was never stopped.
    """

    kind: str
    kills: list[str]
    differences: list[str]


def moments(seed: int) -> Iterator[Moment]:
    """Draw moments without end; one in six while the run is being set up."""
    draw = np.random.default_rng(seed)
    while True:
        if draw.random() < 1 / 6:
            yield Moment(1, draw.uniform(0.0, 1.0))
        else:
            yield Moment(int(draw.integers(2, 22)), draw.uniform(0.0, 0.03))


def run(folder: pathlib.Path, kind: str, moment: Moment | None = None) -> bool:
    """Run the job to its end, or to a moment, and say whether it was killed.

    Raises:
        RuntimeError: If it failed by itself.
    """
    process = subprocess.Popen(
        [sys.executable, str(JOB), str(folder), kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A cache of their own: a process that is killed may leave a torn entry.
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "jax"),
        },
    )
    assert process.stdout is not None
    if moment is not None:
        for _ in range(moment.lines):
            process.stdout.readline()
        time.sleep(moment.seconds)
        process.kill()
    _, errors = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{kind} in {folder}:\n{errors}")
    return process.returncode != 0


def met(folder: pathlib.Path) -> str:
    """Say what a kill met, by what it left behind."""
    names = [path.name for path in folder.glob("checkpoints/*")]
    if any("tmp" in name for name in names):
        return "within a save"
    saved = any(name.startswith("cycle_") for name in names)
    return "between saves" if saved else "before the first checkpoint"


def found(folder: pathlib.Path) -> dict[str, Any]:
    """Read all that must be the same, however often a run was stopped."""
    logs = folder / "logs"
    lines = [json.loads(x) for x in (logs / "metrics.jsonl").read_text().splitlines()]
    with (logs / "table.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    files = sorted(logs.glob("events.out.tfevents.*"))
    events = [event for path in files for event in event_files.read(path)]
    scalars = event_files.scalars(logs)
    return {
        **json.loads((folder / "end.json").read_text()),
        "JSON lines": [without_speed(line) for line in lines],
        "CSV rows": [without_speed(row) for row in rows],
        "CSV columns": list(rows[0]),
        "event files": repr(sorted(without_speed(scalars).items())),
        "steps in event files": [e.step for e in events if e.HasField("summary")],
        "folder of checkpoints": sorted(x.name for x in folder.glob("checkpoints/*")),
    }


def without_speed(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != SPEED}


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List the names of what differs."""
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


def chain(
    folder: pathlib.Path, kind: str, drawn: list[Moment], whole: Mapping[str, Any]
) -> Chain:
    """Kill a run at the moments drawn, let it go on to its end, and compare."""
    kills = []
    for moment in drawn:
        if (folder / "end.json").exists() or not run(folder, kind, moment):
            break
        kills.append(met(folder))
    run(folder, kind)
    return Chain(kind, kills, differences(whole, found(folder)))


def chains(folder: pathlib.Path, kills: int, seed: int, workers: int) -> list[Chain]:
    """Make chains of kills, until there are as many as asked for, or more.

    Args:
        folder: For the files of all runs.
        kills: How many at least.
        seed: Of the moments.
        workers: The runs at a time.

    Returns:
        The chains.
    """
    kinds, drawn = list(job.KINDS), moments(seed)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        wholes = [folder / f"whole-{i}" for i in range(len(kinds))]
        list(pool.map(run, wholes, kinds))
        expected = [found(whole) for whole in wholes]
        made: list[Chain] = []
        while (missing := kills - sum(len(link.kills) for link in made)) > 0:
            count = math.ceil(missing / 4)
            jobs = [
                pool.submit(
                    chain,
                    folder / f"chain-{number}",
                    kinds[number % len(kinds)],
                    [next(drawn) for _ in range(4)],
                    expected[number % len(kinds)],
                )
                for number in range(len(made), len(made) + count)
            ]
            made += [job.result() for job in jobs]
    return made
