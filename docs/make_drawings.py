"""Write the drawings of the docs: each page's own program draws its graphs.

python docs/make_drawings.py            # writes them
python docs/make_drawings.py --check    # fails if one would change
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pathlib
import re
import sys
import tempfile

DOCS = pathlib.Path(__file__).parent
PAGES = {"index.md": DOCS, "all_of_mlox.md": DOCS / "drawings"}


def run(page: pathlib.Path, folder: str) -> None:
    """Run the program of a page in a folder, silently."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    program = compile("\n".join(blocks), page.name, "exec")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        exec(program, {"__name__": page.stem})


def drawings() -> dict[pathlib.Path, str]:
    """Return {path: text} of what the pages draw."""
    found: dict[pathlib.Path, str] = {}
    for name, place in PAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            run(DOCS / name, folder)
            for file in sorted(os.listdir(folder)):
                if file.endswith(".svg"):
                    text = pathlib.Path(folder, file).read_text("utf-8")
                    found[place / file] = text
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    stale = 0
    for path, text in drawings().items():
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
        elif not path.exists() or path.read_text("utf-8") != text:
            print(f"{path} is stale: run python docs/make_drawings.py")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
