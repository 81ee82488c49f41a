"""Tables of text and HTML."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Mapping, Sequence

WIDTH = 88
BYTES_UNITS = {2.0**30: "GiB", 2.0**20: "MiB", 2.0**10: "KiB", 1.0: "B"}
NUMBER = re.compile(r"-?(\d|inf|nan)")


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: columns of numbers to the right, others to the left.

    Example:
        >>> for line in format_table(["method", "error"], [["cg", "0.1"]]):
        ...     print(line)
          method  error
          cg        0.1
    """
    columns: list[list[str]] = []
    for title, *cells in zip(header, *rows, strict=True):
        width = max(map(len, (title, *cells)))
        numbers = all(NUMBER.match(cell) for cell in cells if cell)
        align = str.rjust if numbers and cells else str.ljust
        columns.append([align(cell, width) for cell in (title, *cells)])
    lines = zip(*columns, strict=True)
    return [f"  {'  '.join(line)}".rstrip() for line in lines]


def show_unit(value: float, units: Mapping[float, str]) -> str:
    """Show a number with three digits in the largest unit that it reaches.

    Example:
        >>> show_unit(0.0954, {1.0: "s", 1e-3: "ms"}), show_unit(2e-5, {1e-3: "ms"})
        ('95.4 ms', '0.02 ms')
    """
    reached = (size for size in units if value >= size)
    size = next(reached, min(units))
    return f"{value / size:.3g} {units[size]}".rstrip()


def format_html(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in HTML.

    Example:
        >>> format_html(["a"], [["<1"]])
        '<table><tr><th>a</th></tr><tr><td>&lt;1</td></tr></table>'
    """
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def wrap(text: str, indent: str = "") -> list[str]:
    """Return the lines of a text, all but the first one indented.

    Example:
        >>> wrap("found", indent="  ")
        ['  found']
    """
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent or "  "
    )
