"""Formulas as MathML, made when the site is built: no script, and no foreign server."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL
)

COMMANDS = {
    r"\\arg\s*\\min|\\argmin": r"\text{arg}\,\min",
    r"\\arg\s*\\max|\\argmax": r"\text{arg}\,\max",
}
"""What the converter does not know, in its words."""

INDEX_BELOW = re.compile(r"\\(min|max)(?=\s*_)")
"""In a line of its own, the variable of a minimum stands below it."""


def on_page_content(content: str, **_: Any) -> str:
    """Replace the formulas of a page, those of docstrings among them."""
    return FORMULA.sub(_formula, content)


def _formula(match: re.Match[str]) -> str:
    tag, bracket, latex = match.groups()
    display = "block" if bracket == "[" else "inline"
    latex = html.unescape(latex.strip())
    for command, meaning in COMMANDS.items():
        latex = re.sub(command, lambda _, meaning=meaning: meaning, latex)
    if display == "block":
        latex = INDEX_BELOW.sub(r"\\\1\\limits", latex)
    math = convert(latex, display=display)
    if unknown := re.search(r">\\\w+<", math):
        raise ValueError(f"the formula {latex} has an unknown {unknown[0][1:-1]}")
    math = math.replace(r"\_", "_")  # the converter leaves it in a text
    return f'<{tag} class="formula">{math}</{tag}>'
