"""The code of the README, CONTRIBUTING and the docs runs, each page in a process.

Blocks with a title, ```python title="Betty", show the code of others and do not run.
"""

import pathlib
import re
import subprocess
import sys

import pytest

import mlox

README = pathlib.Path(__file__).parents[1] / "README.md"
CONTRIBUTING = README.with_name("CONTRIBUTING.md")
DOCS = README.parent / "docs"
PAGES = [README, CONTRIBUTING, *sorted(DOCS.rglob("*.md"))]
FIRST = ("index",)  # the other pages are slow
WITHOUT_CODE = {"api", "bilevel_benchmark", "course", "gallery"}  # it runs elsewhere


def name_of(page):
    inside = DOCS in page.parents
    return (
        page.relative_to(DOCS if inside else README.parent).with_suffix("").as_posix()
    )


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page,
            id=name_of(page),
            marks=() if name_of(page) in FIRST else pytest.mark.slow,
        )
        for page in PAGES
        if WITHOUT_CODE.isdisjoint((page.parent.name, page.stem))
    ],
)
def test_every_code_block_runs(page, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    program = "\n".join(blocks)  # later blocks of a page go on from earlier ones
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_two_commands_are_there():
    text = README.read_text()
    assert 'pip install -e ".[examples]" && python examples/data_cleaning.py' in text
    assert 'pip install -e ".[test]" && pytest' in text


def test_relative_links_exist():
    root = README.parent
    pages = [*PAGES, *root.glob("*/README.md"), *root.glob("*/*/README.md")]
    for page in pages:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
            local = target.startswith("https://") or (page.parent / target).exists()
            assert local, f"{page.relative_to(root)} links to {target}"


def test_links_to_headings_exist():
    root = README.parent
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target, heading in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", prose):
            found = headings_of((page.parent / target) if target else page)
            assert heading in found, f"{page.relative_to(root)}: {target}#{heading}"


def headings_of(page):
    """List the headings of a page as their links spell them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles]


def test_the_page_on_wrong_hypergradients_names_every_cause():
    page = README.parent.joinpath("docs", "wrong_hypergradient.md").read_text()
    assert [c.name for c in mlox.Cause if f"`{c.name}`" not in page] == []
