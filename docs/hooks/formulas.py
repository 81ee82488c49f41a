"""Formulas as MathML, made when the site is built: no script, and no foreign server."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL
)


def on_page_content(content: str, **_: Any) -> str:
    """Replace the formulas of a page, those of docstrings among them."""
    return FORMULA.sub(_formula, content)


def _formula(match: re.Match[str]) -> str:
    tag, bracket, latex = match.groups()
    display = "block" if bracket == "[" else "inline"
    math = convert(html.unescape(latex.strip()), display=display)
    return f'<{tag} class="formula">{math}</{tag}>'
