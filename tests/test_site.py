"""Every page is in the navigation, every public name on a page; the check can fail."""

import importlib
import importlib.util
import inspect
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
MODULES = (
    "mlox",
    "mlox.methods",
    "mlox.solvers",
    "mlox.flax",
    "mlox.plot",
    "mlox.testing",
)


def load_checker():
    pytest.importorskip("playwright")
    spec = importlib.util.spec_from_file_location("check_site", DOCS / "check_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented():
    """Return the names that the pages of the API show."""
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    return re.findall(r"^::: (\S+)$", text, re.MULTILINE)


def resolve(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def public_names(module):
    """Return the names a module exports: `X as X`, or functions of its own."""
    text = pathlib.Path(importlib.import_module(module).__file__).read_text()
    own = re.findall(r"^(?:def|class) ([A-Za-z]\w*)", text, re.MULTILINE)
    names = [*re.findall(r"import (\w+) as \1$", text, re.MULTILINE), *own]
    return [n for n in names if not inspect.ismodule(resolve(f"{module}.{n}"))]


def test_every_public_name_has_a_page():
    shown = [resolve(name) for name in documented()]
    missing = [
        f"{module}.{name}"
        for module in MODULES
        for name in public_names(module)
        if not any(resolve(f"{module}.{name}") is each for each in shown)
    ]
    assert not missing, f"no page in docs/api shows {missing}"


def test_no_name_is_shown_twice():
    names = documented()
    assert sorted(names) == sorted(set(names))


def test_every_page_and_notebook_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text().split("\ntheme:")[0]
    pages = [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    outside = [".ipynb_checkpoints", "hooks", "theme"]
    missing = [
        page.relative_to(DOCS).as_posix()
        for page in pages
        if not set(outside) & set(page.parts)
        and not re.search(rf"\W{re.escape(page.relative_to(DOCS).as_posix())}\n", nav)
    ]
    assert not missing, f"add to the nav of mkdocs.yml: {missing}"


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ('<a href="../b/">fine</a><a href="../b/#x">fine</a>', None),
        ('<a href="../c/">gone</a>', "broken link ../c/"),
        ('<a href="../b/#y">gone</a>', "no anchor ../b/#y"),
        ('<img src="no.png">', "broken link no.png"),
        ('<a href="https://nowhere">no host</a>', "no address: https://nowhere"),
    ],
)
def test_links_are_judged(page, fault):
    pages = {"a/index.html": page, "b/index.html": '<h2 id="x">x</h2>'}
    found = load_checker().find_broken_links(pages, set(pages), "https://site/")
    assert found == ([f"a/index.html: {fault}"] if fault else [])


def test_what_the_browser_sees_is_judged():
    judge = load_checker().judge
    fine = {"sideways": 0, "wide": [], "empty": [], "code": 2, "copy": 2}
    assert judge("a", fine) == []
    assert "30 pixels too wide" in judge("a", fine | {"sideways": 30})[0]
    assert "without pixels" in judge("a", fine | {"empty": ["x.png"]})[0]
    assert "copy buttons" in judge("a", fine | {"copy": 1})[0]
