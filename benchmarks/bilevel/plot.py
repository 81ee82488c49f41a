"""Draw the results, and write the tables of docs/bilevel_benchmark.md.

python benchmarks/bilevel/plot.py            # docs/bilevel/<job>.png, and the tables
python benchmarks/bilevel/plot.py --check    # fails if a table would change
"""

from __future__ import annotations

import argparse
import io
import pathlib
import re
import sys
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import results
from matplotlib.ticker import NullFormatter
from PIL import Image
from tables import TITLES, beside_originals, gather, has_originals, quantiles

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGE = DOCS / "bilevel_benchmark.md"
# Of the methods those that differ; the interactive chart has all of them.
SHOWN = {
    "Implicit(CG)": "#0b5cad",
    "Implicit(CG), warm": "#6fb1e0",
    "stocBiO": "#2a9d8f",
    "AmIGO": "#6a4c93",
    "SOBA": "#d1495b",
    "SABA": "#111111",
    "FSLA": "#55a630",
    "F2SA": "#e07a00",
    "SAMA": "#7a7a7a",
    "FiniteDifference": "#b08968",
}


def draw(found: dict[str, Any], path: pathlib.Path) -> None:
    """Draw the norms of a job against evaluations and seconds, one above the other."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False})
    figure, panels = plt.subplots(2, 1, figsize=(5.4, 7.4), sharey=True)
    for panel, key in zip(panels, ("evaluations", "seconds"), strict=True):
        for method, color in SHOWN.items():
            if method not in found["settings"]:
                continue
            places = np.median(gather(found, method, key), axis=0)[1:]
            low, middle, high = quantiles(gather(found, method, "norm"))[:, 1:]
            panel.plot(places, middle, color=color, label=method, linewidth=1.8)
            panel.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
        panel.set(xscale="log", yscale="log", ylabel="norm of the gradient")
        panel.grid(alpha=0.25)
        panel.yaxis.set_minor_formatter(NullFormatter())
    panels[0].set(title=TITLES[found["job"]], xlabel="gradient evaluations of a batch")
    panels[1].set(xlabel="processor seconds")
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=3, loc="lower center")
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    path.parent.mkdir(exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    plt.close(figure)
    # A palette takes a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(128).save(path, optimize=True)


def table(found: dict[str, Any]) -> str:
    """Return the table of a job: medians (and quartiles) over seeds."""
    rows = [
        "| method | norm at a tenth | norm at the end | value at the end | µs |",
        "|---|---|---|---|---|",
    ]
    budget = found["sizes"]["budget"]
    lines = []
    for method in found["settings"]:
        spent = gather(found, method, "evaluations")[0]
        norm, value = (
            quantiles(gather(found, method, key)) for key in ("norm", "value")
        )
        tenth = int(np.argmin(np.abs(spent - budget / 10)))
        seconds = gather(found, method, "seconds")[:, -1]
        lines.append(
            (
                norm[1, -1],
                f"| {method} | {shown(norm[1, tenth])} | {shown(norm[1, -1])} "
                f"({shown(norm[0, -1])} to {shown(norm[2, -1])}) "
                f"| {value[1, -1]:.4g} | {np.median(seconds) / spent[-1] * 1e6:.3g} |",
            )
        )
    ordered = sorted(lines, key=lambda line: line[0])
    return "\n".join([*rows, *(line for _, line in ordered)]).replace("inf", "diverged")


def shown(value: float) -> str:
    """Format with two digits, without leading zeros of an exponent."""
    return re.sub(r"e([-+])0?", r"e\1", f"{value:.2g}") if np.isfinite(value) else "inf"


def replaced(page: str, name: str, rows: str) -> str:
    """Return the page with another table below its mark."""
    mark = f"<!-- table: {name} -->"
    block = f"{mark}\n\n{rows}\n\n<!-- end -->"
    pattern = rf"{re.escape(mark)}\n.*?<!-- end -->"
    return re.sub(pattern, lambda _: block, page, flags=re.DOTALL)


def main() -> int:
    """Draw the pictures and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args()
    before = page = PAGE.read_text("utf-8")
    both = []
    for job in TITLES:
        found = results.read(job)
        if not found["curves"]:
            continue
        page = replaced(page, job, table(found))
        if has_originals(found):
            both.append(found)
        if not options.check:
            draw(found, DOCS / "bilevel" / f"{job}.png")
    page = replaced(page, "originals", beside_originals(both))
    if options.check and page != before:
        print(f"{PAGE} is stale: run python benchmarks/bilevel/plot.py")
        return 1
    PAGE.write_text(page, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
