"""The tables of accelerator.py, from its results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import _record

Row = Mapping[str, Any]
Found = Mapping[str, Any]

HEADING = "## On an accelerator"
NOT_MEASURED = "`python benchmarks/accelerator.py`: not measured on a GPU."
# The names of rows in `loops`.
PLAIN, MIXED = "plain reverse mode", "mixed mode, blocks and Adam recomputed"
LESS_MEMORY, TIME = 8.0, 0.8
SAME = 0.02
"""The largest relative difference of hypergradients whose products are in TF32."""

PRICES = {"FiniteDifference()": 2.2, "SAMA()": 2.2, "Implicit(CG(5))": 9.0}
"""The targets for the price of one step of the upper."""

BY_HAND = 1.05


def section(found: Found | None) -> str:
    """Return the results as Markdown."""
    if found is None:
        return f"{HEADING}\n\n{NOT_MEASURED}"
    parts = found["parts"]
    return "\n\n".join(
        [
            HEADING,
            _about(found, parts["about"][0]),
            _correctness(parts["correctness"]),
            _loops(parts["loops"]),
            _price(parts["price"], {row["row"]: row for row in parts["work"]}),
            _largest(parts["largest"]),
            _speed(parts["speed"]),
            *_beside_betty(parts["beside_betty"]),
            *listed("Targets that were missed", missed(parts)),
            *listed("Rows without a figure", left_out(parts)),
        ]
    )


def wrong(found: Found) -> list[str]:
    """List what failed, and hypergradients that are not exact enough."""
    parts = found["parts"]
    failed = [
        f"{part}, {row['row']}: {row['failed']}"
        for part, rows in parts.items()
        for row in rows
        if "failed" in row
    ]
    return [*failed, *_different(parts["loops"])] + [
        f"{row['row']}: an error of {row['errors'][key]:.1e} in {key}, more than "
        f"{row['accepted'][key]:.1e}"
        for row in measured(parts["correctness"])
        for key in row["wrong"]
    ]


def _different(rows: Sequence[Row]) -> Iterator[str]:
    """List the loops whose hypergradient is of another size than the first one's."""
    timed = [row for row in measured(rows) if row["timed"] == row["steps"]]
    for row in timed[1:]:
        if abs(row["size"] / timed[0]["size"] - 1) > SAME:
            yield f"{row['row']}: of size {row['size']:.4g}, not {timed[0]['size']:.4g}"


def missed(parts: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Say which targets were missed."""
    loops = {row["row"]: row for row in measured(parts["loops"])}
    if {PLAIN, MIXED} <= loops.keys():
        less, time = ratios(loops[PLAIN], loops[MIXED])
        if less < LESS_MEMORY:
            yield f"memory of a loop: {less:.1f} times less, not {LESS_MEMORY:g}"
        if time is not None and time > TIME:
            yield f"time of a loop: {time:.2f} of plain reverse mode, not {TIME:g}"
    for row in measured(parts["price"]):
        target = PRICES.get(row["row"].split(", ", 1)[1])
        if target and row["price"] > target:
            yield f"price, {row['row']}: {row['price']:.2f}, not {target:g}"
    for row in measured(parts["speed"]):
        for key in ("one", "many"):
            ratio = row[key]["mlox"] / row[key]["by hand"]
            if ratio > BY_HAND:
                yield f"{row['row']}, {key}: {ratio:.2f} of by hand, not {BY_HAND:g}"


def ratios(plain: Row, mixed: Row) -> tuple[float, float | None]:
    """Return how much less memory mixed mode takes, and its part of the time."""
    less = plain["temporaries"] / mixed["temporaries"]
    if plain["timed"] is None or mixed["timed"] is None:
        return less, None
    return less, mixed["step"] / plain["step"]


def _about(found: Found, row: Row) -> str:
    words = _record.describe(found)
    if "failed" in row:
        return f"{words} The device did not answer: {row['failed']}"
    memory = f", {_gigabytes(row['bytes'])} for JAX" if row["bytes"] else ""
    words += f" The device: {row['card']}{memory}, JAX {row['jax']} ({row['driver']})."
    if row["platform"] == "cpu":
        words += " A CPU, and small sizes: this shows that the program runs, no more."
    return words


def _correctness(rows: Sequence[Row]) -> str:
    head = ["relative error of the hypergradient", "float32", "TF32", "bfloat16 losses"]
    lines = []
    for row in measured(rows):
        keys = ("float32", "TF32", "bfloat16")
        both = [(row["errors"][key], row["accepted"][key]) for key in keys]
        lines.append([row["row"], *(f"{x:.1e} of {most:.1e}" for x, most in both)])
    words = (
        "### Every method beside float64 on the CPU\n\nOf the largest error that the "
        "precision allows, derived in `on_accelerator/correctness.py`."
    )
    return f"{words}\n\n{table(head, lines)}"


def _loops(rows: Sequence[Row]) -> str:
    found = {row["row"]: row for row in measured(rows)}
    head = ["hypergradient", "temporaries", "peak", "time of a step", "beside plain"]
    lines = []
    for name, row in found.items():
        peak = row.get("peak")
        beside = ""
        if PLAIN in found:
            less, time = ratios(found[PLAIN], row)
            part = "" if time is None else f", {time:.2f} of the time"
            beside = f"{less:.1f} times less{part}"
        step = "" if row["timed"] is None else f"{1e3 * row['step']:.3g} ms"
        if step and row["timed"] != row["steps"]:
            step += f", of {row['timed']} that fit"
        lines.append(
            [
                name,
                _gigabytes(row["temporaries"]),
                _gigabytes(peak) if peak else "",
                step,
                beside,
            ]
        )
    of = next(iter(found.values()), None)
    words = "### Memory and time of a loop\n\n"
    if of and "parameters" in of:
        words += (
            f"A hypergradient through {of['steps']} steps of Adam on a decoder of "
            f"{of['parameters'] / 1e6:.3g} million parameters, one weight for each "
            "sequence. Temporaries are the compiler's, the peak is the device's.\n\n"
        )
    return words + table(head, lines)


def _price(rows: Sequence[Row], work: Mapping[str, Row]) -> str:
    head = ["job, method", "lower's step", "price", "by operations", "one product"]
    lines = []
    for row in measured(rows):
        lines.append(
            [
                row["row"],
                f"{1e3 * row['lower']:.3g} ms",
                f"{row['price']:.2f}",
                *write_counts(work.get(row["row"], {})),
            ]
        )
    words = (
        "### The price of one step of the upper\n\nIn steps of the lower (a gradient "
        "and Adam), by time, and by floating-point operations of the optimized "
        "program. A product is one more iteration of CG, "
        "in the same unit."
    )
    return f"{words}\n\n{table(head, lines)}"


def write_counts(row: Row) -> list[str]:
    """Return the price and a product by operations, where they were counted."""
    return [f"{row[key]:.2f}" if key in row else "" for key in ("price", "product")]


def _largest(rows: Sequence[Row]) -> str:
    head = ["method", "parameters", "blocks", "bytes of a cycle", "of the device's"]
    lines = [
        [
            row["row"],
            f"{row['parameters'] / 1e6:.4g} million",
            str(row["blocks"]),
            _gigabytes(row["bytes"]),
            _gigabytes(row["limit"]),
        ]
        for row in measured(rows)
    ]
    words = "### The largest decoder for which a cycle fits, and has run"
    return f"{words}\n\n{table(head, lines)}"


def _speed(rows: Sequence[Row]) -> str:
    head = ["job, method", "mlox", "by hand", "ratio", "50 in a call", "difference"]
    lines = []
    for row in measured(rows):
        one, many = row["one"], row["many"]
        lines.append(
            [
                row["row"],
                *(f"{1e3 * one[key]:.3g} ms" for key in ("mlox", "by hand")),
                f"{one['mlox'] / one['by hand']:.2f}",
                f"{many['mlox'] / many['by hand']:.2f}",
                f"{row['difference']:.0e}",
            ]
        )
    words = "### Beside hand-written JAX, in float32"
    return f"{words}\n\n{table(head, lines)}"


def _beside_betty(rows: Sequence[Row]) -> Iterator[str]:
    found = {row["row"]: row for row in measured(rows)}
    lines = []
    for name, theirs in found.items():
        job, side = name.rsplit(", ", 1)
        if side == "Betty" and f"{job}, mlox" in found:
            ours = found[f"{job}, mlox"]["step"]
            seconds = [f"{1e3 * x:.3g} ms" for x in (ours, theirs["step"])]
            ratio = f"{theirs['step'] / ours:.2f}"
            lines.append([job, *seconds, ratio, f"{theirs['difference']:.0e}"])
    if lines:
        head = ["job", "mlox", "Betty", "Betty / mlox", "difference"]
        yield f"### Beside Betty, in float32\n\n{table(head, lines)}"


def left_out(parts: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """List the rows that have failed, or found no time, and why."""
    for part, rows in parts.items():
        for row in rows:
            why = row.get("failed") or row.get("skipped")
            if why:
                yield f"{part}, {row['row']}: {why}"


def listed(title: str, lines: Iterator[str]) -> list[str]:
    """Return a list under a title, or nothing if it is empty."""
    items = [f"- {line}" for line in lines]
    return ["\n".join([f"{title}:", "", *items])] if items else []


def measured(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that have figures."""
    return [row for row in rows if "failed" not in row and "skipped" not in row]


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
