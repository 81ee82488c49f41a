"""mlox on an accelerator: correctness, speed, memory, the largest model, the price.

    pip install -e . "jax[cuda12]"        # on a bare machine with an NVIDIA card
    python benchmarks/accelerator.py      # at most eight minutes
    python benchmarks/accelerator.py --size tiny --results FOLDER    # also on a CPU
    python benchmarks/accelerator.py --operations    # the price alone, without a device

Every part has a process and a time of its own. A row that fails says why, and one for
which no time is left says so. Results are written to benchmarks/results only from an
accelerator; from a CPU to where --results says. The exit code is 1 if a row has failed,
or a hypergradient is less exact than the precision allows. Operations, which need no
accelerator, have a file of their own.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _record
from on_accelerator import operations, tables
from on_accelerator.parts import (
    ON_CPU,
    Part,
    Place,
    Row,
    Rows,
    finish,
    measure,
    start,
)

SECONDS = 480.0
PARTS = (
    Part("about", 90),  # the first to import JAX, from a cold disk
    Part("reference", 240, environment={**ON_CPU, "JAX_ENABLE_X64": "1"}, beside=True),
    Part("work", 240, environment=ON_CPU, beside=True),
    Part("correctness", 130),
    Part("loops", 110, alone=True),
    Part("price", 80),
    # All memory at once: what grows by pieces is left with gaps.
    Part("largest", 90, environment={"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}),
    Part("speed", 90),
    Part("beside_betty", 60, alone=True),
)


def rows_of(part: str, place: Place) -> Rows:
    """Return the rows of a part; only what measures them needs a device."""
    rows = importlib.import_module(f"on_accelerator.{part}").rows(place)
    return dict(itertools.islice(rows.items(), place.most))


def all_parts(place: Place, seconds: float) -> dict[str, list[Row]]:
    """Run the parts, one after the other; some on the CPU beside the others."""
    end = time.monotonic() + seconds
    names = {part.name: tuple(rows_of(part.name, place)) for part in PARTS}
    beside = {
        part.name: start(part, names[part.name], place, part.seconds)
        for part in PARTS
        if part.beside
    }
    found = {}
    for part in PARTS:
        if not part.beside:
            found[part.name] = run(part, names[part.name], place, end)
            print(progress(part, found[part.name], end), flush=True)
    return {**found, **{name: finish(running) for name, running in beside.items()}}


def run(part: Part, names: tuple[str, ...], place: Place, end: float) -> list[Row]:
    """Run a part within its time, and that of all."""
    until, found = min(end, time.monotonic() + part.seconds), []
    for some in [(name,) for name in names] if part.alone else [names]:
        left = until - time.monotonic()
        if left < 1:
            found += [{"row": name, "skipped": "no time is left"} for name in some]
        else:
            found += finish(start(part, some, place, left))
    return found


def progress(part: Part, rows: list[Row], end: float) -> str:
    """Say how a part went."""
    took = sum(row.get("seconds", 0.0) for row in rows)
    failed = [row for row in rows if "failed" in row]
    words = f"{part.name}: {took:.0f} of {part.seconds:.0f} s, {len(rows)} rows"
    words += f", {len(failed)} failed" if failed else ""
    return f"{words}; {end - time.monotonic():.0f} s are left"


def count_operations(place: Place, seconds: float) -> list[Row]:
    """Count operations alone."""
    (part,) = (part for part in PARTS if part.name == "work")
    names = tuple(rows_of(part.name, place))
    return finish(start(part, names, place, seconds))


def section(
    found: Mapping[str, Any] | None, counted: Mapping[str, Any] | None = None
) -> str:
    """Return the results as Markdown, and the operations, if they were counted."""
    text = tables.section(found)
    return text if counted is None else f"{text}\n\n{operations.section(counted)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="full", choices=("full", "tiny"))
    parser.add_argument("--results", type=Path, help="default: benchmarks/results")
    parser.add_argument("--rows", type=int, help="make only the first of each part")
    parser.add_argument("--operations", action="store_true", help="count them alone")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        place = Place(options.size, options.folder, options.rows)
        rows = rows_of(options.part, place)
        for row in measure(rows, options.row, options.seconds):
            print(json.dumps(row), flush=True)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        place = Place(options.size, Path(folder), options.rows)
        if options.operations:
            return write_operations(count_operations(place, options.seconds), options)
        parts = all_parts(place, options.seconds)
    command = f"python benchmarks/accelerator.py --size {options.size}"
    found = {**_record.about(command), "size": options.size, "parts": parts}
    print(f"\n{section(found)}")
    on_cpu = parts["about"][0].get("platform", "cpu") == "cpu"
    if options.results or not on_cpu:
        print(_record.write("accelerator", found, options.results or _record.FOLDER))
    wrong = tables.wrong(found)
    print("\n".join(wrong))
    return int(bool(wrong))


def write_operations(rows: list[Row], options: argparse.Namespace) -> int:
    """Print the operations, and write them; return 1 if one was not counted."""
    command = f"python benchmarks/accelerator.py --operations --size {options.size}"
    found = {**_record.about(command), "size": options.size, "rows": rows}
    print(operations.section(found))
    if options.results or options.size == "full":
        print(_record.write("operations", found, options.results or _record.FOLDER))
    return int(len(tables.measured(rows)) < len(rows))


if __name__ == "__main__":
    sys.exit(main())
