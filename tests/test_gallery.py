"""Each program of the gallery has a page, a picture and a text, and is short."""

import pathlib
import re
import sys

import pytest

from tests.test_examples import SMALL

ROOT = pathlib.Path(__file__).parents[1]
GALLERY = ROOT / "docs" / "gallery"
sys.path.insert(0, str(ROOT / "docs"))

import make_gallery  # noqa: E402

NAMES = sorted(make_gallery.BASELINES)


def test_every_program_is_in_the_gallery():
    programs = {path.stem for path in ROOT.glob("examples/[!_]*.py")}
    pages = {path.stem for path in GALLERY.glob("*.md")} - {"index"}
    assert programs == pages == set(NAMES) == set(SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_program_is_short_and_its_page_shows_all_of_it(name):
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 150
    page = (GALLERY / f"{name}.md").read_text()
    block = f'```python title="examples/{name}.py"\n--8<-- "examples/{name}.py"\n```'
    assert block in page
    assert f'```text\n--8<-- "docs/gallery/{name}.txt"\n```' in page
    assert re.search(rf"!\[[^\]]+\]\({name}\.png\)", page), "no picture"
    assert "$$" in page, "no formula"


@pytest.mark.parametrize("name", NAMES)
def test_what_the_program_wrote_is_kept(name):
    assert 0 < (GALLERY / f"{name}.png").stat().st_size <= make_gallery.LARGEST
    text = (GALLERY / f"{name}.txt").read_text()
    assert make_gallery.has_row(text, make_gallery.BASELINES[name])


def test_the_index_has_a_card_for_each_program():
    index = (GALLERY / "index.md").read_text()
    for name in NAMES:
        assert f"]({name}.png)]({name}.md)" in index, name
