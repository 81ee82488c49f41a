"""What is said of sides beside each other: a table for each group, and the targets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import _causes
import _record

Row = Mapping[str, Any]
HEAD = (
    *("job", "side", "difference", "time of an upper step", "ratio", "wall ratio"),
    *("memory", "step memory", "FLOPs", "compile", "target"),
)
OVERVIEW = (
    *("side", "jobs", "ratio, least to largest", "targets met"),
    *("memory of mlox / its", "step memory"),
)
MEASURED = """\
All sides of a job start from the same arrays and take the same batches, which lie in
memory as a step takes them (only "mlox, Engine.run" stacks them itself). Each library
has an environment of its own; all processes have one thread and stay on the same core.
First the outcomes of some steps are compared: `difference` is the largest one, relative
to the largest entry of each array, and a side that differs from the first one by more
than the tolerance of its job is not timed. Then samples of all sides are taken in turn,
each round in another order.

- **Time of an upper step**: processor time, the median over samples (quartiles).
- **Ratio**: the processor time of a side divided by that of the first side, which is
  mlox where it takes part, in the same round, the median (quartiles). Above 1, the
  first one is the faster one. **Wall ratio**: the same by the clock, which other
  programs on the machine stretch more.
- **Memory**: the largest resident memory while steps are made, by a side alone in a
  process that has made some before, beyond what the process held when its libraries
  had been imported and had made a step on one number; what is free was returned to
  the system before. It includes parameters, batches, compiled programs and what their
  compiler keeps; **step memory** is the part that comes and goes with the steps.
- **FLOPs** are XLA's of an upper step; it counts the body of a loop once. **Compile**
  is the time for tracing, lowering and compiling, without a cache. PyTorch has neither.
"""


def section(found: Mapping[str, Any]) -> str:
    """Render the comparisons in Markdown."""
    commands, dates = (
        dict.fromkeys(one[key] for one in found["comparisons"])
        for key in ("command", "date")
    )
    about = {**found, "command": "`, `".join(commands), "date": ", ".join(dates)}
    parts = ["## Side by side", _record.describe(about), MEASURED, summary(found)]
    group_of = lambda one: one["group"]
    for group, some in itertools.groupby(found["comparisons"], group_of):
        listed = list(some)
        parts += [f"### {group}", table(listed)]
        parts += ["\n".join(f"- {text}" for text in dict.fromkeys(remarks(listed)))]
    rounds = [
        side["rounds"]
        for one in found["comparisons"]
        for side in one["sides"]
        if "rounds" in side
    ]
    if rounds:
        parts += [f"Samples of each side: {_range(rounds)}."]
    parts += ["Libraries: " + "; ".join(libraries(found)) + "."]
    return "\n\n".join(part.strip() for part in parts if part)


def summary(found: Mapping[str, Any]) -> str:
    """Say which targets are met, what is missed, and what has failed."""
    each = [
        (f"{one['group']}, {one['job']}", one["sides"][0], side)
        for one in found["comparisons"]
        for side in one["sides"]
    ]
    aims = [target(side) for *_, side in each if target(side)]
    met = sum(aim.startswith("met") for aim in aims)
    names = dict.fromkeys(
        side["name"] for _, ours, side in each if ours["name"] == "mlox"
    )
    peers = [name for name in names if not name.startswith("mlox")]
    rows = [
        overview(n, [pair for _, *pair in each if pair[1]["name"] == n]) for n in peers
    ]
    parts = [f"**{met} of {len(aims)} targets are met.**", _lines(OVERVIEW, rows)]
    if _causes.CACHED in names:
        parts += [_causes.MEMORY]
    missed = [
        (name, side["name"], target(side))
        for name, _, side in each
        if target(side) and not target(side).startswith("met")
    ]
    failed = [
        (name, side["name"], side["failed"]) for name, _, side in each if side["failed"]
    ]
    if missed:
        table = _lines(("job", "beside", "target"), missed)
        parts += ["Missed, the median and the quartiles:", table]
        parts += ["\n".join(_why(found))] if missed_pairs(found) else []
    if failed:
        parts += ["What failed:", _lines(("job", "side", "reason"), failed)]
    return "\n\n".join(parts)


def missed_pairs(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return group and side of the targets that are missed."""
    pairs = (
        (one["group"], side["name"])
        for one in found["comparisons"]
        for side in one["sides"]
        if target(side).startswith("missed")
    )
    return list(dict.fromkeys(pairs))


def _why(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is known of the causes, each once with all that it explains."""
    explained: dict[str, list[str]] = {}
    for pair in missed_pairs(found):
        if pair in _causes.CAUSES:
            explained.setdefault(_causes.CAUSES[pair], []).append(", ".join(pair))
    for text, pairs in explained.items():
        lines = "\n".join(f"  {line}" for line in text.splitlines())
        yield f"- **{'; '.join(pairs)}.**\n{lines}"


def overview(name: str, pairs: Sequence[Sequence[Row]]) -> list[str]:
    """Return what there is of a peer in all jobs, each mlox's row and its own."""
    ratios = [side["processor ratio"][1] for _, side in pairs if "processor" in side]
    aims = [target(side) for _, side in pairs if target(side)]
    shares = [
        [_share(ours, side, since) for ours, side in pairs]
        for since in ("started", "held")
    ]
    return [
        *(name, str(len(ratios)), _range(ratios)),
        f"{sum(aim.startswith('met') for aim in aims)} of {len(aims)}" if aims else "",
        *(_range([share for share in some if share is not None]) for some in shares),
    ]


def target(side: Row) -> str:
    """Say whether a side's target is met, and by what; "" if it has none."""
    if side["at_least"] is None and side["at_most"] is None:
        return ""
    ratio = side.get("processor ratio")
    least = side["at_least"]
    aim = f"ratio >= {least:g}" if least else f"mlox / it <= {side['at_most']:g}"
    if ratio is None:
        return f"not measured: {aim}"
    low, value, high = ratio if least else [1 / x for x in reversed(ratio)]
    met = value >= least if least else value <= side["at_most"]
    digits = ".3g" if least else ".4f"
    text = f"{'met' if met else 'missed'}: {aim}: {value:{digits}}"
    return text if met else f"{text} ({low:{digits}} to {high:{digits}})"


def table(some: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of a group, without columns that are empty."""
    rows = []
    for one in some:
        jobs = [one["job"], *[""] * len(one["sides"])]
        rows += [cells(*pair) for pair in zip(jobs, one["sides"], strict=False)]
    shown = [i for i in range(len(HEAD)) if i < 5 or any(row[i] for row in rows)]
    return _lines([HEAD[i] for i in shown], [[row[i] for i in shown] for row in rows])


def cells(job: str, side: Row) -> list[str]:
    """Return what the table says of a side."""
    if "processor" not in side:
        return [job, side["name"], f"failed: {side['failed']}", *[""] * 7, target(side)]
    facts, wall = side["facts"], side.get("wall ratio")
    return [
        *(job, side["name"], f"{side['difference']:.0e}"),
        _spread(side["processor"], duration),
        _spread(side["processor ratio"], lambda x: f"{x:.3g}"),
        f"{wall[1]:.3g}",
        *(_mebibytes(memory(side, since)) for since in ("started", "held")),
        f"{facts['flops']:.3g}" if "flops" in facts else "",
        duration(facts["compile"]) if "compile" in facts else "",
        target(side),
    ]


def memory(side: Row, since: str) -> int | None:
    """Return the bytes at the peak beyond those at a moment: "started", "held"."""
    found = side.get("memory")
    return found and found["peak"] - found[since]


def remarks(some: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what a reader must know of the sides."""
    for one in some:
        for side in one["sides"]:
            if side["remark"]:
                yield f"{side['name']}: {side['remark']}"


def libraries(found: Mapping[str, Any]) -> list[str]:
    """Return the versions of the libraries in each environment."""
    versions: dict[str, dict[str, str]] = {}
    for one in found["comparisons"]:
        for side in one["sides"]:
            about = versions.setdefault(side["environment"], {})
            about |= {
                name.lower(): text for name, text in side.get("about", {}).items()
            }
    return [
        f"{name} ({', '.join(f'{k} {v}' for k, v in sorted(about.items()))})"
        for name, about in versions.items()
    ]


def line(place: str, one: Mapping[str, Any]) -> str:
    """Say in a line of at most 100 columns what was found of a comparison."""
    found = []
    for side in one["sides"]:
        ratio = side.get("processor ratio")
        if side["failed"]:
            found.append(f"{side['name']} FAILED")
        elif not side["name"].startswith("mlox"):
            found.append(f"{side['name']} {ratio[1]:.2g}")
    figures = f": {', '.join(found)}"
    name = f"{place} {one['group']}, {one['job']}"
    return f"{name[: max(30, 100 - len(figures))]}{figures}"[:100]


def duration(seconds: float) -> str:
    """Format a duration with three digits and a unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _spread(values: Sequence[float], write: Callable[[float], str]) -> str:
    low, middle, high = map(write, values)
    return middle if low == high else f"{middle} ({low} to {high})"


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.1f} MiB"


def _share(ours: Row, theirs: Row, since: str) -> float | None:
    """Return how much memory mlox takes to what another takes; less than 1 is less."""
    one, other = memory(ours, since), memory(theirs, since)
    if one is None or not other or max(one, other) < 2**20:  # below that it is noise
        return None
    return one / other


def _range(values: Sequence[float]) -> str:
    ends = [f"{end(values):.3g}" for end in (min, max) if values]
    return " to ".join(dict.fromkeys(ends))


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
