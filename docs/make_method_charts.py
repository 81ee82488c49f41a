"""Draw the questions of docs/which_method.md as charts, one for each numbered list.

python docs/make_method_charts.py            # writes docs/drawings/which_*.svg
python docs/make_method_charts.py --check    # fails if one would change
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
import textwrap
from xml.sax.saxutils import escape, quoteattr

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mlox._draw.colors import (  # noqa: E402
    BORDER,
    BOX,
    CARD,
    CLASS,
    COLORS,
    FAINT,
    TEXT,
    darken,
)

PAGE = ROOT / "docs" / "which_method.md"
LISTS = {"method": "## Which method?", "solver": "## Which solver?"}
ITEM = r"^\d+\. \*\*(.+?)\*\*(?: Yes:)? (`.+?`(?: or `.+?`)*)\."
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"
WIDTH, SIDE, LINE, PAD, GAP = 372, 16, 18, 11, 22
SIGNS = 44  # of a question, in one line
BLUE = COLORS["l2u"]


def read_list(heading: str) -> list[tuple[str, str]]:
    """Read the list below a heading: (question, what to use)."""
    section = PAGE.read_text("utf-8").split(f"{heading}\n")[1].split("\n## ")[0]
    items = re.sub(r"\n {3,}", " ", section)  # a line for each
    return re.findall(ITEM, items, re.MULTILINE)


def draw(title: str, items: list[tuple[str, str]]) -> str:
    """Draw a ladder: each question, its answer if yes, and the way down if no."""
    shapes: list[str] = []
    y = float(SIDE)
    for i, (question, use) in enumerate(items):
        last = i == len(items) - 1
        lines = textwrap.wrap(question, SIGNS, break_on_hyphens=False)
        height = LINE * (len(lines) + 1) + 2 * PAD + 6
        shapes += draw_rung(y, height, lines, use.replace("`", ""), last)
        y += height
        if not last:
            shapes += draw_no(y)
            y += GAP
    height = round(y + SIDE)
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    text = " ".join(f"{question} {use.replace('`', '')}." for question, use in items)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="{CLASS}" {size} '
            f'role="img" font-family={quoteattr(FONT)} font-size="14" '
            f"aria-label={quoteattr(title)}>",
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(text)}</desc>",
            darken(),
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8" '
            f'fill="{CARD}" stroke="{BORDER}"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def draw_rung(
    y: float, height: float, lines: list[str], use: str, last: bool
) -> list[str]:
    """Draw a question and, below it in the same box, what to use."""
    left = SIDE + PAD
    base = y + PAD + LINE - 4
    low = base + LINE * len(lines) + 6
    head = "" if last else "yes"
    aside = left if last else left + 52
    arrow = (
        ""
        if last
        else f'<path d="M{left + 28} {low - 4}h14" stroke="{BLUE}" stroke-width="1.5"/>'
        f'<polygon points="{left + 48},{low - 4} {left + 41},{low - 8} '
        f'{left + 41},{low}" fill="{BLUE}"/>'
    )
    return [
        f'<rect x="{SIDE}" y="{y}" width="{WIDTH - 2 * SIDE}" height="{height}" '
        f'rx="6" fill="{BOX}" stroke="{BORDER}"/>',
        *(
            f'<text x="{left}" y="{base + LINE * i}" fill="{TEXT}">'
            f"{escape(line)}</text>"
            for i, line in enumerate(lines)
        ),
        f'<text x="{left}" y="{low}" fill="{FAINT}" font-size="13">{head}</text>'
        f"{arrow}",
        f'<text x="{aside}" y="{low}" fill="{BLUE}" font-weight="600" '
        f'font-size="13" font-family={quoteattr(MONO)}>{escape(use)}</text>',
    ]


def draw_no(y: float) -> list[str]:
    """Draw the way to the next question."""
    x = SIDE + PAD + 8
    return [
        f'<path d="M{x} {y}v{GAP - 6}" stroke="{FAINT}" stroke-width="1.5"/>'
        f'<polygon points="{x},{y + GAP} {x - 4},{y + GAP - 7} {x + 4},{y + GAP - 7}" '
        f'fill="{FAINT}"/>',
        f'<text x="{x + 12}" y="{y + GAP - 7}" fill="{FAINT}" font-size="12">no</text>',
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    stale = 0
    for name, heading in LISTS.items():
        path = ROOT / "docs" / "drawings" / f"which_{name}.svg"
        text = draw(heading.removeprefix("## "), read_list(heading))
        if not check:
            path.write_text(text, "utf-8")
        elif path.read_text("utf-8") != text:
            print(f"{path} is stale: run python docs/make_method_charts.py")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
