"""The page of all of mlox prints what it shows, and draws its own drawings."""

import contextlib
import io
import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"
BLOCK = r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?"
NUMBER = r"-?\d[\d.,]*(?:e[-+]\d+)?|µs|ms|Ki?B|k\b|\bs\b"


def words(text):
    """Reduce a text to its words, without figures and the layout around them."""
    return re.sub(NUMBER, "", text).split()


@pytest.mark.slow  # 20 s
def test_the_page_prints_what_it_shows(tmp_path):
    text = DOCS.joinpath("all_of_mlox.md").read_text("utf-8")
    names = {}
    with contextlib.chdir(tmp_path):
        for program, shown in re.findall(BLOCK, text, re.DOTALL):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(program, names)
            assert words(printed.getvalue()) == words(shown)
    drawn = {path.name: path.read_text("utf-8") for path in tmp_path.glob("*.svg")}
    assert sorted(drawn) == ["levels.svg", "penalty.svg"]
    for name, svg in drawn.items():
        assert svg == DOCS.joinpath("drawings", name).read_text("utf-8")
