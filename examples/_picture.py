"""The picture of a program: one size, letters that a phone shows, and few bytes."""

import io
from typing import Any

import matplotlib
from PIL import Image

matplotlib.use("Agg")  # write a file without opening a window
import matplotlib.pyplot as plt

COLORS = ["#e07b00", "#1f77b4", "#2ca02c", "#9467bd", "#d62728", "#17a2b8", "#7f7f7f"]
STYLE = {
    "axes.grid": True,
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 12,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 2,
}


plt.rcParams.update(STYLE)
SIZE: Any = {"figsize": (8, 4), "layout": "constrained"}


def panels(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """Return a figure of 8 x 4 inches and its axes, as `plt.subplots` does."""
    return plt.subplots(rows, columns, **(SIZE | options))


def mosaic(shape: list[list[str]], widths: list[float]) -> tuple[Any, Any]:
    """Return a figure and its axes by name, as `plt.subplot_mosaic` does."""
    return plt.subplot_mosaic(shape, width_ratios=widths, **SIZE)


def band(axes: Any, x: Any, curves: Any, label: str, **options: Any) -> None:
    """Draw the mean of curves [runs, points], and one standard deviation around it."""
    mean, std = curves.mean(axis=0), curves.std(axis=0)
    (line,) = axes.plot(x, mean, label=label, **options)
    color = line.get_color()
    axes.fill_between(x, mean - std, mean + std, color=color, alpha=0.15, lw=0)


def save(figure: Any, file: str) -> None:
    """Write a PNG of 100 dots per inch and 128 colours, and close the figure."""
    memory = io.BytesIO()
    figure.savefig(memory, dpi=100)
    plt.close(figure)
    picture = Image.open(memory).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(file, format="PNG", optimize=True)
