"""Draw a graph as an SVG document."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

from mlox._draw.colors import BORDER, BOX, CARD, CLASS, COLORS, FAINT, TEXT, darken
from mlox._draw.edges import ARROW, Edge, place_labels
from mlox._draw.layout import Box
from mlox._draw.scene import make_scene
from mlox._utils.describe import count

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
DASHES = {"u2l": "5 4", "reads": "1.5 3"}
MEANINGS = {
    "l2u": "l2u: the upper reads the lower's answer",
    "u2l": "u2l: the lower reads the upper's parameters",
    "reads": "reads: parameters that are read as constants",
}
MARGIN = 20.0
NAME_SIZE, SIZE = 14.0, 12.0
LINE = 17.0
LONGEST_LINE = 38
PADDING = 10.0
KEY = 34.0  # the length of an arrow in the legend


def draw_graph(
    texts: Mapping[str, Sequence[str]],
    depth: Mapping[str, int],
    u2l: Sequence[tuple[str, str]],
    l2u: Sequence[tuple[str, str]],
    reads: Sequence[tuple[str, str]] = (),
) -> str:
    """Draw a graph: uppers above lowers, solid l2u edges up, dashed u2l edges down.

    What is read as a constant has a dotted edge to the problem that reads it.

    Args:
        texts: {name: lines of its box, the first one its name}.
        depth: {name: depth}; an upper is deeper than its lowers.
        u2l: Edges (upper, lower).
        l2u: Edges (lower, upper).
        reads: Pairs (reader, read).

    Returns:
        The text of an SVG document.
    """
    scene = make_scene(depth, {n: box_size(texts[n]) for n in texts}, u2l, l2u, reads)
    layout, drawn = scene.layout, {edge.arrow.kind for edge in scene.edges}
    legend = [kind for kind in MEANINGS if kind in drawn]
    width = max([layout.width, *map(_legend_width, legend)])
    aside = (width - layout.width) / 2
    labels = place_labels(scene.edges, -aside, layout.width + aside)
    shapes = [
        f'<g transform="translate({aside:.1f} 0)">',
        *map(_draw_edge, scene.edges),
        *(_draw_box(layout.boxes[name], lines) for name, lines in texts.items()),
        *(
            _draw_label(edge.arrow.kind, x, y)
            for edge, (x, y) in zip(scene.edges, labels, strict=False)
        ),
        "</g>",
        *(
            _draw_meaning(kind, layout.height + PADDING + LINE * (i + 1))
            for i, kind in enumerate(legend)
        ),
    ]
    below = 2 * PADDING + LINE * len(legend) if legend else 0.0
    sentences = [", ".join(lines) for lines in texts.values()]
    return _picture(
        width + 2 * MARGIN,
        layout.height + below + 2 * MARGIN,
        f"Graph of {count(len(texts), 'problem')}",
        "; ".join([*sentences, *(edge.name for edge in scene.edges)]),
        shapes,
    )


def _picture(
    width: float, height: float, title: str, text: str, shapes: Sequence[str]
) -> str:
    """Return the SVG document of some shapes on a card."""
    size = f'width="{width:.0f}" height="{height:.0f}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{CLASS}" {size} '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" font-family="{FONT}" '
        f'font-size="{SIZE:g}" aria-label={quoteattr(title)}>',
        f"<title>{escape(title)}</title>",
        f"<desc>{_clean(text)}.</desc>",
        darken(),
        f'<rect x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" '
        f'rx="8" fill="{CARD}" stroke="{BORDER}"/>',
        f'<g transform="translate({MARGIN:g} {MARGIN:g})">',
        *shapes,
        "</g>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def box_size(lines: Sequence[str]) -> tuple[float, float]:
    """Return the size of a box with some lines, the first one its name."""
    name, *others = lines
    widths = [_text_width(name, NAME_SIZE)]
    widths += [_text_width(cut(line), SIZE) for line in others]
    return max(widths) + 2 * PADDING, LINE * len(lines) + 2 * PADDING


def _text_width(text: str, size: float) -> float:
    """Bound the width of a text from above, whatever font the machine has."""
    wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in text)
    return size * (0.62 * (len(text) - wide) + 1.1 * wide)


def cut(text: str) -> str:
    """Return a line of a box, cut off if it is too long."""
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 1]}…"


def _clean(text: str) -> str:
    """Escape a text for XML, in which some signs cannot stand at all."""
    return escape("".join(c if c.isprintable() else " " for c in text))


def _draw_box(box: Box, lines: Sequence[str]) -> str:
    left, top = box.x - box.width / 2, box.y - box.height / 2
    baseline = box.y - LINE * (len(lines) - 1) / 2 + 0.35 * SIZE
    bold = f'fill="{TEXT}" font-size="{NAME_SIZE:g}" font-weight="600"'
    styles = [bold] + [f'fill="{FAINT}"'] * (len(lines) - 1)
    shown = [lines[0], *map(cut, lines[1:])]
    rows = [
        f'<text x="{box.x:.1f}" y="{baseline + LINE * i:.1f}" text-anchor="middle" '
        f"{style}>{_clean(line)}</text>"
        for i, (style, line) in enumerate(zip(styles, shown, strict=True))
    ]
    return (
        f"<g data-problem={quoteattr(lines[0])}>"
        f"<title>{_clean(', '.join(lines))}</title>"
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{box.width:.1f}" '
        f'height="{box.height:.1f}" rx="6" fill="{BOX}" stroke="{BORDER}"/>'
        f"{''.join(rows)}</g>"
    )


def _draw_edge(edge: Edge) -> str:
    first, last = edge.curves[0], edge.curves[-1]
    low, high = first.y0 + ARROW, last.y1 - ARROW
    kind, up = edge.arrow
    if up:
        x, tip, base, low_end, high_end = last.x1, high, last.y1, low, last.y1
    else:
        x, tip, base, low_end, high_end = first.x0, low, first.y0, first.y0, high
    path = [f"M{first.x0:.1f} {low_end:.1f}"]
    path += [
        f"L{c.x0:.1f} {c.y0:.1f}C{c.x0:.1f} {c.middle:.1f} {c.x1:.1f} {c.middle:.1f} "
        f"{c.x1:.1f} {c.y1:.1f}"
        for c in edge.curves
    ]
    path.append(f"L{last.x1:.1f} {high_end:.1f}")
    corners = f"{x:.1f},{tip:.1f} {x - 4:.1f},{base:.1f} {x + 4:.1f},{base:.1f}"
    return (
        f"<g data-edge={quoteattr(edge.name)}><title>{escape(edge.name)}</title>"
        f"{_draw_line(kind, ''.join(path))}"
        f'<polygon points="{corners}" fill="{COLORS[kind]}"/></g>'
    )


def _draw_line(kind: str, path: str) -> str:
    dashes = f' stroke-dasharray="{DASHES[kind]}"' if kind in DASHES else ""
    return (
        f'<path d="{path}" fill="none" stroke="{COLORS[kind]}" stroke-width="1.5"'
        f"{dashes}/>"
    )


def _draw_label(kind: str, x: float, y: float) -> str:
    return (
        f'<text x="{x:.1f}" y="{y + 3.5:.1f}" font-size="10" text-anchor="middle" '
        f'fill="{COLORS[kind]}">{kind}</text>'
    )


def _legend_width(kind: str) -> float:
    return KEY + 8 + _text_width(MEANINGS[kind], SIZE)


def _draw_meaning(kind: str, y: float) -> str:
    """Draw a line of the legend."""
    arrow = _draw_line(kind, f"M0 {y - 4:.1f}H{KEY - ARROW:g}")
    tip = f"{KEY:g},{y - 4:.1f} {KEY - ARROW:g},{y - 8:.1f} {KEY - ARROW:g},{y:.1f}"
    return (
        f'{arrow}<polygon points="{tip}" fill="{COLORS[kind]}"/>'
        f'<text x="{KEY + 8:g}" y="{y:.1f}" fill="{FAINT}">{MEANINGS[kind]}</text>'
    )
