"""RESULTS.md, from the files of results."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import _record
import _side_by_side
import accelerator
from bilevel import tables

PAGE = Path(__file__).with_name("RESULTS.md")
BILEVEL = Path(__file__).parent / "bilevel" / "results"
TOP = """\
# Beside other libraries

This page is written by `python benchmarks/all.py`, which installs every library in an
environment of its own and measures what stands here; `python benchmarks/all.py --quick`
takes at most ten minutes, without the installations, and writes a page of fewer jobs
elsewhere. Every figure comes from a file of results in `benchmarks/`, and every file
from the command that is named with it.
"""
NOT_COMPARED = "## Side by side\n\n`python benchmarks/all.py`: not run yet."
PROGRAMS = {
    "growth": ("Growth", "not run yet"),
    "attribution": ("Data attribution", "not run yet"),
    "scaling": ("Many devices", "not run yet"),
}
"""The headings of the other programs, and what is said where one has no results."""


def render(folder: Path) -> str:
    """Return the page."""
    found = _record.read("side_by_side", folder)
    sides = _side_by_side.section(found) if found else NOT_COMPARED
    parts = [TOP, sides]
    for name, (title, missing) in PROGRAMS.items():
        found = _record.read(name, folder)
        if found is not None:
            parts.append(importlib.import_module(name).section(found))
        else:
            command = f"`python benchmarks/{name}.py`"
            parts.append(f"## {title}\n\n{command}: {missing}.")
    measured, counted = (
        _record.read(name, folder) for name in ("accelerator", "operations")
    )
    parts.append(accelerator.section(measured, counted))
    parts.append(tables.section(bilevel_results()))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def bilevel_results() -> list[dict]:
    """Return the results of the bilevel benchmark, a job each."""
    return [
        json.loads(path.read_text("utf-8")) for path in sorted(BILEVEL.glob("*.json"))
    ]


def page_of(folder: Path) -> Path:
    """Return where the page of a folder of results is written."""
    return PAGE if folder.resolve() == _record.FOLDER.resolve() else folder / PAGE.name


def write(folder: Path) -> Path:
    """Write the page, and return its path."""
    page = page_of(folder)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(folder), "utf-8")
    return page


def check(folder: Path) -> int:
    """Return 1 if the page is not what the results give, else 0."""
    page = page_of(folder)
    if page.exists() and page.read_text("utf-8") == render(folder):
        return 0
    print(f"{page} is stale: run python benchmarks/all.py --report")
    return 1
