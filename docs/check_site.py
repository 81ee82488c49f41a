"""Open every page of the built site in a browser, and fail on what a reader would see.

mkdocs build && python docs/check_site.py --shots shots

Each page is opened at 390 and at 1440 pixels, in the light and in the dark. Wrong are:
errors on the console, requests that fail or leave this server, broken links and
anchors, a page that scrolls sideways, pictures without pixels, code without a copy
button, a search that finds nothing, and no page for an address that does not exist.
Other sites are not opened. The site is served as one version of several, at /latest/.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import pathlib
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from playwright.sync_api import TimeoutError, sync_playwright

ROOT = pathlib.Path(__file__).parents[1]
WIDTHS = (390, 1440)
QUERIES = ("hypergradient", "unroll_steps", "CG", "Betty", "checkpoint", "NaN", "vmap")
PREFIX = "/latest/"
VERSIONS = b'[{"version": "latest", "title": "latest", "aliases": []}]'
LOOK = """() => ({
  sideways: document.documentElement.scrollWidth - window.innerWidth,
  wide: [...document.querySelectorAll('main *')].filter(e =>
    e.getBoundingClientRect().right > window.innerWidth + 1
    && !e.closest('pre, .md-typeset__scrollwrap, .formula, .output')
  ).slice(0, 3).map(e => e.outerHTML.slice(0, 120)),
  empty: [...document.images].filter(
    i => !i.complete || !i.naturalWidth).map(i => i.src),
  code: document.querySelectorAll('main .highlight').length,
  copy: [...document.querySelectorAll('main .highlight')].filter(
    block => block.querySelector('[data-clipboard-target]')).length,
})"""


class _Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {values[key] or "" for key in ("id", "name") if key in values}
        if tag in ("a", "img", "script", "link"):
            self.links += [values[k] or "" for k in ("href", "src") if k in values]


def find_broken_links(pages: dict[str, str], files: set[str], site: str) -> list[str]:
    """Return what is wrong with the links of the pages, {path: HTML}."""
    parsed = {path: _Page(text) for path, text in pages.items()}
    wrong: list[str] = []
    for path, page in parsed.items():
        for link in page.links:
            here = f"http://here/{'' if link.startswith(site) else path}"
            url = urlsplit(urljoin(here, link.removeprefix(site)))
            if url.netloc != "here":
                if url.scheme in ("http", "https") and "." not in url.netloc:
                    wrong.append(f"{path}: no address: {link}")
                continue
            target = unquote(url.path).lstrip("/")
            target += "index.html" if target in ("",) or target.endswith("/") else ""
            if target not in files:
                wrong.append(f"{path}: broken link {link}")
            elif url.fragment and target in parsed:
                anchor = unquote(url.fragment)
                if anchor not in parsed[target].anchors:
                    wrong.append(f"{path}: no anchor {link}")
    return wrong


def judge(where: str, seen: dict[str, Any]) -> list[str]:
    """Return what is wrong with a page as the browser shows it."""
    wrong: list[str] = []
    if seen["sideways"] > 0:
        wrong.append(f"{where}: {seen['sideways']} pixels too wide: {seen['wide']}")
    wrong += [f"{where}: a picture without pixels: {src}" for src in seen["empty"]]
    if seen["copy"] < seen["code"]:
        wrong.append(f"{where}: {seen['code'] - seen['copy']} copy buttons missing")
    return wrong


def serve(site: pathlib.Path) -> http.server.ThreadingHTTPServer:
    """Serve the folder from a thread, with the site's own page for what is missing."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/versions.json":
                self.reply(200, "application/json", VERSIONS)
            elif self.path.startswith(PREFIX):
                self.path = self.path.removeprefix(PREFIX[:-1])
                super().do_GET()
            else:
                self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

        def send_error(self, code: int, *_: Any, **__: Any) -> None:
            body = (site / "404.html").read_bytes() if code == 404 else b""
            self.reply(code, "text/html", body)

        def reply(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    handler = functools.partial(Handler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def watch(page: Any, base: str, wrong: list[str]) -> None:
    """Note what the browser complains of, and each request that leaves the server."""

    def note(what: str) -> None:
        wrong.append(f"{page.url.removeprefix(base)}: {what}")

    page.on(
        "console", lambda m: note(f"console: {m.text}") if m.type == "error" else None
    )
    page.on("pageerror", lambda error: note(f"script: {error}"))
    page.on(
        "requestfailed",  # aborted: the page was left before it was answered
        lambda r: (
            None
            if r.failure == "net::ERR_ABORTED"
            else note(f"failed: {r.url}, {r.failure}")
        ),
    )
    page.on(
        "request",
        lambda r: None if _is_ours(r.url, base) else note(f"foreign: {r.url}"),
    )


def _is_ours(url: str, base: str) -> bool:
    return url.startswith((base.removesuffix(PREFIX[:-1]), "data:", "blob:"))


def look_at_pages(
    browser: Any, base: str, paths: list[str], shots: pathlib.Path | None
) -> Iterator[str]:
    """Open each page at each width, in the light and in the dark."""
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            size = {"width": width, "height": 900}
            context = browser.new_context(viewport=size, color_scheme=scheme)
            wrong: list[str] = []
            page = context.new_page()
            watch(page, base, wrong)
            for path in paths:
                page.goto(
                    f"{base}/{path.removesuffix('index.html')}", wait_until="load"
                )
                page.wait_for_timeout(60)
                yield from judge(f"{path} at {width}, {scheme}", page.evaluate(LOOK))
                if shots:
                    name = path.removesuffix("/index.html").removesuffix(".html")
                    name = f"{name.replace('/', '_')}_{width}_{scheme}.png"
                    page.screenshot(path=shots / name, full_page=False)
            yield from wrong
            context.close()


def try_search(browser: Any, base: str) -> Iterator[str]:
    """Type the queries, and expect results."""
    page, wrong = browser.new_page(), list[str]()
    watch(page, base, wrong)
    for query in QUERIES:
        page.goto(f"{base}/")
        field = page.locator("[data-md-component=search-query]").first
        field.click()
        field.press_sequentially(query)
        try:
            page.wait_for_selector(".md-search-result__item", timeout=60_000)
        except TimeoutError:
            yield f"search: nothing is found for {query!r}"
    yield from wrong
    page.close()


def try_missing(browser: Any, base: str) -> Iterator[str]:
    """Open an address that does not exist."""
    page = browser.new_page()
    answer = page.goto(f"{base}/no/such/page/")
    if answer.status != 404 or "does not exist" not in page.content():
        yield "404: no page says that there is none"
    page.close()


def check(site: pathlib.Path, chromium: str, shots: pathlib.Path | None) -> list[str]:
    """Return all that is wrong with the site."""
    files = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()}
    paths = sorted(f for f in files if f.endswith(".html") and f != "404.html")
    pages = {path: (site / path).read_text(encoding="utf-8") for path in paths}
    address = re.search(r"^site_url: (\S+)", (ROOT / "mkdocs.yml").read_text(), re.M)
    wrong = find_broken_links(pages, files, address[1] if address else "")
    server = serve(site)
    base = f"http://127.0.0.1:{server.server_port}{PREFIX[:-1]}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        )
        wrong += look_at_pages(browser, base, paths, shots)
        wrong += try_search(browser, base)
        wrong += try_missing(browser, base)
        browser.close()
    server.shutdown()
    print(f"{len(paths)} pages, {len(wrong)} faults")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=pathlib.Path, default=ROOT / "site")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--shots", type=pathlib.Path, help="a folder for screenshots")
    options = parser.parse_args()
    if not options.chromium:
        parser.error("no chromium on PATH; install it, or pass --chromium PATH")
    if options.shots:
        options.shots.mkdir(parents=True, exist_ok=True)
    wrong = check(options.site, options.chromium, options.shots)
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
