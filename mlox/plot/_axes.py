"""Axes to draw on: those given, or those of a new figure; colours and legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mlox._utils.fields import check as check_value
from mlox._utils.fields import instance_of

# After Okabe and Ito, so that colour-blind readers tell them apart, and each as light
# as it must be to stand out by 3 : 1 from a white and from a dark page. What is beside
# lines (text, axes) has the colours of the user's matplotlib style.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#b5619c", "#a67c00", "#7a7a7a")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
FEW = 40  # points of a line that are marked
ROWS = 18  # of a legend


class Look(NamedTuple):
    """How a series looks: no two of the first 24 look alike."""

    color: str
    dashes: str
    marker: str


def look_of(number: int) -> Look:
    """Return the look of a series, by its number."""
    return Look(
        COLORS[number % len(COLORS)],
        DASHES[number // len(COLORS) % len(DASHES)],
        MARKERS[number % len(MARKERS)],
    )


def take_axes(owner: str, ax: Any, size: tuple[float, float]) -> Any:
    """Return the axes to draw on.

    Args:
        owner: The function that draws.
        ax: The axes given, or None for those of a new figure.
        size: The size of a new figure, in inches.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `ax` is given and is no axes.
    """
    try:
        from matplotlib import pyplot
        from matplotlib.axes import Axes
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ImportError(
            f"mlox.plot.{owner} needs matplotlib, which is not installed. Install it, "
            "e.g. by `pip install matplotlib`."
        ) from error
    if ax is None:
        return pyplot.subplots(figsize=size, layout="constrained")[1]
    kind = instance_of(Axes, "matplotlib axes, e.g. plt.subplots()[1], or None")
    check_value(f"plot.{owner}: ax", ax, kind)
    return ax


def finish(ax: Any, xlabel: str, ylabel: str, grid: str = "both") -> None:
    """Label the axes, and leave out what no one reads."""
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, axis=grid, alpha=0.3)


def add_legend(
    ax: Any, owned: bool, handles: Sequence[Any], title: str | None = None
) -> None:
    """Add a legend: beside the axes of a figure of our own, or where there is room."""
    labels = [handle.get_label() for handle in handles]
    columns = 1 + (len(labels) - 1) // ROWS
    options = {"frameon": False, "ncols": columns, "title": title}
    if owned:
        options |= {
            "loc": "upper left",
            "bbox_to_anchor": (1.01, 1.0),
            "borderaxespad": 0.0,
        }
    ax.legend(handles, labels, **options)


def show(text: str) -> str:
    r"""Return a text as matplotlib shows it to the letter.

    A dollar sign would begin a formula, and a leading underscore hides a series.

    Example:
        >>> show("_a$b$")
        ' _a\\$b\\$'
    """
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
