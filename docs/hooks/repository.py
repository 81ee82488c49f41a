"""Files outside docs/: some are pages of the site, links to the others lead to GitHub.

A relative link that works on GitHub works on the site, too.
"""

from __future__ import annotations

import pathlib
import posixpath
import re
from typing import Any

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[2]
PAGES = {
    "README.md": "readme.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/RESULTS.md": "side_by_side.md",
    "examples/README.md": "examples.md",
}
"""The page of the site that shows a file of the repository."""

RESULTS = "benchmarks/bilevel/results"
"""The folder of the files that the interactive chart reads, as bilevel/<job>.json."""

CODE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$|(`+)(?!`).*?(?<!`)\3(?!`)", re.M | re.S)
LINK = re.compile(r"(\]\(|<(?:a|img)\b[^>]*?\b(?:href|src)=\")([^)#\"\s>]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are written outside docs/."""
    for source, page in PAGES.items():
        path = ROOT / source
        files.append(File.generated(config, page, abs_src_path=str(path)))
    for path in sorted((ROOT / RESULTS).glob("*.json")):
        page = f"bilevel/{path.name}"
        files.append(File.generated(config, page, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Translate the links of a page from the repository to the site."""
    here = page.file.src_uri
    source = source_of(here)
    page.edit_url = f"{config.repo_url}/edit/main/{source}"
    return translate_links(markdown, source, here, config.repo_url)


def source_of(page: str) -> str:
    """Return the path in the repository of what a page shows."""
    outside = {page: source for source, page in PAGES.items()}
    if page in outside:
        return outside[page]
    notebook = posixpath.join("docs", page.removesuffix(".md") + ".ipynb")
    return notebook if (ROOT / notebook).exists() else posixpath.join("docs", page)


def translate_links(text: str, source: str, page: str, repo_url: str) -> str:
    """Return the text with the links of `source` as `page` has to write them."""

    def link(match: re.Match[str]) -> str:
        return match[1] + translate(match[2], source, page, repo_url)

    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [LINK.sub(link, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, LINK.sub(link, text[end:])])


def translate(target: str, source: str, page: str, repo_url: str) -> str:
    """Return the target of a link in the file `source`, for the page that shows it."""
    if re.match(r"[a-z]+:|/|<", target):
        return target
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    shown = PAGES.get(path, path.removeprefix("docs/"))
    if shown == path or path.endswith((".py", ".txt")):
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{repo_url}/{kind}/main/{path}" if (ROOT / path).exists() else target
    if shown.endswith(".ipynb"):
        shown = shown.removesuffix(".ipynb") + ".md"
    return posixpath.relpath(shown, posixpath.dirname(page) or ".")
