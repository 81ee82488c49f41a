"""Tables of text and HTML."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence

WIDTH = 88


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: the first column to the left, others to the right.

    Example:
        >>> for line in format_table(["method", "error"], [["cg", "0.1"]]):
        ...     print(line)
          method  error
          cg        0.1
    """
    table = [header, *rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    lines: list[str] = []
    for line in table:
        first, *rest = zip(line, widths, strict=True)
        shown = [first[0].ljust(first[1]), *(cell.rjust(w) for cell, w in rest)]
        lines.append(f"  {'  '.join(shown)}".rstrip())
    return lines


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
