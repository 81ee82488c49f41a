"""Make the pictures of docs/plots.md by the code of that page.

    python docs/make_plots.py

The page is the program: its blocks run in the folder `docs/plots`, where they save.
"""

import os
import pathlib
import re

os.environ.setdefault("MPLBACKEND", "Agg")
PAGE = pathlib.Path(__file__).absolute().with_name("plots.md")


def main():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    folder = PAGE.with_suffix("")
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    exec(compile("\n".join(blocks), PAGE, "exec"), {"__name__": "plots"})
    for name in sorted(set(re.findall(r"\(plots/(.*?)\)", PAGE.read_text()))):
        print(f"docs/plots/{name}: {(folder / name).stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
