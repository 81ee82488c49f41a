"""Show an engine in a notebook: its picture, and its explanation as a table."""

from __future__ import annotations

from html import escape

from mlox._engine.described import Described
from mlox._engine.draw import draw
from mlox._engine.explain import describe_problems, title

CELL = 'style="text-align: left; vertical-align: top"'


def to_html(self: Described) -> str:
    """Return the picture and the explanation of an engine as HTML."""
    plan = self.cycle.plan
    rows: list[str] = []
    for name, described in describe_problems(plan, self.problems).items():
        head = f'<th {CELL} rowspan="{len(described)}">{escape(name)}</th>'
        for key, value in described:
            cells = f"<td {CELL}>{escape(key)}</td><td {CELL}>{escape(value)}</td>"
            rows.append(f"<tr>{head}{cells}</tr>")
            head = ""
    return "\n".join(
        [
            "<div>",
            f'<div style="overflow-x: auto">{draw(self)}</div>',
            f"<table><caption>{escape(title(plan))}</caption>",
            *rows,
            "</table>",
            "</div>",
        ]
    )
