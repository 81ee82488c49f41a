"""Notebooks as pages: text, code and outputs in the Markdown of all other pages.

With MLOX_EXECUTE=true each notebook is executed, and an error fails the build. No page
needs the scripts and styles of Jupyter, which come from other servers.
"""

from __future__ import annotations

import logging
import os
import pathlib
import posixpath
import time
from typing import Any

import nbclient
import nbformat
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

log = logging.getLogger("mkdocs.hooks.notebooks")
TEMPLATES = pathlib.Path(__file__).with_name("notebook")


def on_config(config: Any) -> Any:
    """Let the navigation name a notebook where it means its page."""
    config.nav = _pages_of(config.nav)
    return config


def _pages_of(nav: Any) -> Any:
    if isinstance(nav, list):
        return [_pages_of(entry) for entry in nav]
    if isinstance(nav, dict):
        return {title: _pages_of(entry) for title, entry in nav.items()}
    return page_of(nav) if nav else nav


def page_of(notebook: str) -> str:
    """Return the name of the page that shows a notebook; other names are left."""
    stem, kind = posixpath.splitext(notebook)
    return f"{stem}.md" if kind == ".ipynb" else notebook


def on_files(files: Any, config: Any) -> Any:
    """Replace each notebook by a page and the pictures that it shows."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        page = page_of(file.src_uri)
        notebook = nbformat.read(file.abs_src_path, as_version=4)
        if os.environ.get("MLOX_EXECUTE", "false").lower() == "true":
            execute(notebook, pathlib.Path(file.abs_src_path))
        text, pictures = to_markdown(notebook, posixpath.basename(page)[: -len(".md")])
        files.append(File.generated(config, page, content=text))
        for name, data in pictures.items():
            path = posixpath.join(posixpath.dirname(page), name)
            files.append(File.generated(config, path, content=data))
    return files


def execute(notebook: Any, path: pathlib.Path) -> None:
    """Run all cells in place, in the folder of the notebook, and log the time."""
    begin = time.monotonic()
    where = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    if said := [output.text for output in outputs if output.get("name") == "stderr"]:
        raise RuntimeError(f"{path.name} writes to stderr:\n{''.join(said)}")
    # A warning would fail a strict build, and `mkdocs build -q` shows nothing less.
    print(f"{time.monotonic() - begin:6.1f} s  {path.name}", flush=True)


def to_markdown(notebook: Any, stem: str) -> tuple[str, dict[str, bytes]]:
    """Return the text of a page, and its pictures by their names."""
    exporter = MarkdownExporter(
        template_name="page", extra_template_basedirs=[str(TEMPLATES)]
    )
    resources = {"unique_key": stem, "output_files_dir": f"{stem}_files"}
    text, resources = exporter.from_notebook_node(notebook, resources)
    return text, resources["outputs"]
