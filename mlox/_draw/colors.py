"""The colours of pictures, on a light and on a dark page.

A picture has a card of its own, so it can be read on any page. Attributes hold the
light colours, which every viewer of SVG knows. A style exchanges them for dark ones
where the page, or else the reader's system, is dark.
"""

from __future__ import annotations

CARD, BOX, BORDER, TEXT, FAINT = "#ffffff", "#f6f8fa", "#8b949e", "#1f2328", "#57606a"
COLORS = {"u2l": "#bc4c00", "l2u": "#0550ae", "reads": "#8250df"}
DARK = {
    CARD: "#0d1117",
    BOX: "#161b22",
    BORDER: "#6e7681",
    TEXT: "#e6edf3",
    FAINT: "#a0a8b2",
    COLORS["u2l"]: "#f0883e",
    COLORS["l2u"]: "#58a6ff",
    COLORS["reads"]: "#bc8cff",
}
CLASS = "mlox-picture"  # the style reaches no other picture of a page


def darken() -> str:
    """Return the style element of a picture whose root has the class CLASS."""
    rules = (
        f'.{CLASS} [{part}="{light}"]{{{part}:{dark}}}'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    )
    return f"<style>@media (prefers-color-scheme: dark){{{''.join(rules)}}}</style>"
