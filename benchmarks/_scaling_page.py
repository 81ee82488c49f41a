"""The section of `scaling.py` in the page of results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import _record
import _timing
import killed

MIB = 2**20


def render(found: Mapping[str, Any]) -> str:
    """Render the results as Markdown."""
    parts = ["## Many devices", _record.describe(found)]
    for name, write in PARTS.items():
        if name in found:
            parts += write(found[name])
    return "\n\n".join(parts)


def _communication(found: Mapping[str, Any]) -> Iterator[str]:
    unit = found["unit"]
    yield "### Communication"
    yield (
        "All-reduced in one cycle by the program that XLA compiles for eight simulated "
        "CPU devices, in units of all parameters of the lower problem "
        f"({unit / MIB:.2f} MiB), and in how many operations. Every gradient and every "
        "product with a Hessian is a sum over all devices: one unit each is the least. "
        'With "mean of means" the losses are written with `jax.shard_map`, see '
        "[Many devices](../docs/scaling.md)."
    )
    head = ["method", "gradients and products", "replicated", "mean of means"]
    rows = [
        [
            f"`{row['case']}`",
            str(row["evaluations"]),
            _moved(row["replicated"], "all-reduce"),
            _moved(row["mean of means"], "all-reduce"),
            _moved(row["fsdp"], "all-reduce"),
            _moved(row["fsdp"], "all-gather"),
        ]
        for row in found["rows"]
    ]
    yield _timing.table([*head, "fsdp", "gathered, fsdp"], rows)


def _ahead(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not found:
        return
    yield (
        "The same by the compilers for eight accelerators, which compile ahead of "
        "time, without one. A reduce-scatter is given in units of what goes in."
    )
    head = ["compiler", "method", "gradients and products", "all-reduced, replicated"]
    head += ["all-reduced, fsdp", "reduce-scattered, fsdp", "gathered, fsdp"]
    rows = []
    for one in found:
        if "failed" in one:
            rows.append([one["compiler"], one["failed"], *["-"] * 5])
        for row in one["rows"]:
            rows.append(
                [
                    f"8 {one['compiler']}",
                    f"`{row['case']}`",
                    str(row["evaluations"]),
                    _moved(row["replicated"], "all-reduce"),
                    _moved(row["fsdp"], "all-reduce"),
                    _moved(row["fsdp"], "reduce-scatter", times=8),
                    _moved(row["fsdp"], "all-gather"),
                ]
            )
    yield _timing.table(head, rows)


def _moved(found: Mapping[str, Any], kind: str, times: int = 1) -> str:
    units, count = found["collectives"].get(kind, (0.0, 0))
    return f"{times * units:.2f} in {count}" if count else "-"


def _memory(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "### Memory of each device"
    yield "MiB on one device, with 64 examples on each, of the same programs."
    counts = found[0]["devices"]
    rows = [
        [
            f"`{row['case']}`",
            row["rules"],
            what,
            *(f"{x / MIB:.2f}" for x in row[what]),
        ]
        for row in found
        for what in ("state", "temporaries")
    ]
    head = ["method", "rules", "", *(f"of {n}" for n in counts)]
    yield _timing.table(head, rows)


def _weak(found: Mapping[str, Any]) -> Iterator[str]:
    yield "### Weak scaling"
    yield (
        f"A cycle with {found['batch']} examples and one core for each process: real "
        "processes, with gloo over the loopback address. Two apart are two jobs of one "
        "process each at the same time, which do not communicate."
    )
    head = ["method", "one process", "two apart", "two processes"]
    rows = [
        [
            f"`{row['case']}`",
            *(_timing.duration(row[name]) for name in ("one", "apart", "two")),
            f"{row['one'] / row['two']:.2f}",
            f"{row['apart'] / row['two']:.2f}",
        ]
        for row in found["rows"]
    ]
    yield _timing.table([*head, "efficiency", "to two apart"], rows)


def _lost(found: Mapping[str, Any]) -> Iterator[str]:
    waits = found["timeouts"]
    yield "### A lost process"
    yield (
        f"A job of {found['processes']} processes trains for {found['cycles']} cycles "
        f"with a checkpoint every {found['every']}; one process is lost after cycle "
        f"{found['lost at']}. A lost process is given up after "
        f"`heartbeat_timeout_seconds={waits['heartbeat_timeout_seconds']}`, and one "
        "that has failed waits for the others for "
        f"`shutdown_timeout_seconds={waits['shutdown_timeout_seconds']}`: the others "
        f"must end within {sum(waits.values())} seconds. Then all are started again by "
        "the same command; the seconds are from there, imports and compilation "
        "included."
    )
    yield killed.table(found)


PARTS = {
    "communication": _communication,
    "ahead": _ahead,
    "memory": _memory,
    "weak": _weak,
    "lost": _lost,
}
