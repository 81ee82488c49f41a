"""A part of accelerator.py: rows that may fail, or find no time, one by one.

Every part runs in a process of its own, and writes a line of JSON when a row is done:
what breaks a device breaks only one part, and a part that takes too long is ended.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
Rows = Mapping[str, Callable[[], Row]]

ENTRY = Path(__file__).parents[1] / "accelerator.py"
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # or a peak is all that is preallocated
    "XLA_CLIENT_MEM_FRACTION": "0.92",
}
ON_CPU = {"JAX_PLATFORMS": "cpu"}


class Part(NamedTuple):
    """A part.

    Attributes:
        name: The name of its module, and what the table calls it.
        seconds: The most time that it is given.
        environment: Variables of its process.
        alone: Whether each row has a process of its own, whose peak of memory is its.
        beside: Whether it runs beside the others: on the CPU, that is.
    """

    name: str
    seconds: float
    environment: Mapping[str, str] = {}
    alone: bool = False
    beside: bool = False


class Place(NamedTuple):
    """What the process of a part is told.

    Attributes:
        size: A name of `sizes.SIZES`.
        folder: Where parts find what others have written.
        most: How many rows of each part are made, the first ones.
    """

    size: str
    folder: Path
    most: int | None = None


def measure(rows: Rows, only: str | None, seconds: float) -> Iterator[Row]:
    """Yield what each row finds, or why it does not.

    A row for which less time is left than the longest so far took is left out.
    """
    begun, longest = time.monotonic(), 0.0
    for name, row in rows.items():
        if only not in (None, name):
            continue
        at = time.monotonic()
        left = seconds - (at - begun)
        if left < longest or left <= 0:
            yield {"row": name, "skipped": f"{left:.0f} of {seconds:.0f} s are left"}
            continue
        yield {"row": name, **attempt(row)}
        longest = max(longest, time.monotonic() - at)
        gc.collect()  # what a failed row has left on the device


def attempt(row: Callable[[], Row]) -> Row:
    """Return what a row finds and its seconds, or why it fails."""
    begun = time.monotonic()
    try:
        return {**row(), "seconds": time.monotonic() - begun}
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return {"failed": f"{type(error).__name__}: {lines[0]}"[:300]}


class Running(NamedTuple):
    """A part in its process.

    Attributes:
        process: The process.
        file: Where it writes its rows.
        names: The rows that it is to make.
        until: When it is ended, by `time.monotonic`.
    """

    process: subprocess.Popen[bytes]
    file: Path
    names: tuple[str, ...]
    until: float


def start(part: Part, names: Iterable[str], place: Place, seconds: float) -> Running:
    """Start some rows of a part in a process."""
    names = tuple(names)
    file = place.folder / f"{part.name} {names[0]}.jsonl".replace("/", " ")
    only = ["--row", names[0]] if part.alone else []
    told = ["--part", part.name, "--size", place.size, "--seconds", str(seconds)]
    told += ["--rows", str(len(names))] if place.most else []
    command = [sys.executable, ENTRY, *told, "--folder", place.folder, *only]
    with file.open("wb") as out:
        process = subprocess.Popen(command, env=environment(part), stdout=out)
    grace = 5.0  # a row that has begun in time may end a little later
    return Running(process, file, names, time.monotonic() + seconds + grace)


def environment(part: Part) -> dict[str, str]:
    """Return the environment of the process of a part."""
    found = {**os.environ, **ENVIRONMENT, **part.environment}
    found.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # the older name, not both
    found["PYTHONPATH"] = os.pathsep.join(
        [str(ENTRY.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    return found


def finish(running: Running) -> list[Row]:
    """Wait for a part, end it when its time is over, and return all its rows."""
    try:
        code = running.process.wait(max(0.0, running.until - time.monotonic()))
        why = f"the process ended with {code}"
    except subprocess.TimeoutExpired:
        running.process.kill()
        running.process.wait()
        why = "not done when its time was over"
    *lines, _ = running.file.read_text("utf-8").split("\n")  # the last may be cut off
    found = [json.loads(line) for line in lines if line.startswith('{"row"')]
    done = {row["row"] for row in found}
    left = [name for name in running.names if name not in done]
    return found + [{"row": name, "failed": why} for name in left]
