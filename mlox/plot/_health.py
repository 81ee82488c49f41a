"""Draw how far off the answers of a run are: gaps, and residuals of solvers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlox._utils.describe import summarize
from mlox.plot._axes import FEW, add_legend, finish, look_of, show, take_axes
from mlox.plot._columns import Series, check_history, list_metrics, read_series

SMALLEST = 1e-12  # where a zero is drawn
KINDS = {"gap": "-", "residual": "--"}


def health(history: Mapping[str, Any], *, ax: Any = None) -> Any:
    """Draw the gap and the residual of every answer over the cycles of a run.

    The gap says, in the units of the upper's loss, how far the lower's answer is from
    solved; the residual, relative to the right-hand side, how much of the linear system
    of the multiplier is left. Both should be small and fall. The axis is logarithmic: a
    negative gap, which is noise of mini-batches, is drawn by its size with an open
    marker, a zero at 1e-12. One colour is one edge.

    Args:
        history: What `engine.run` returns.
        ax: The matplotlib axes; None makes a new figure.

    Returns:
        The matplotlib axes.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If an argument is of the wrong kind.
        ValueError: If the history has neither a gap nor a residual.

    Example:
        >>> import mlox
        >>> history = {"cycle": [10, 20], "penalty/fit/gap": [0.1, 0.01],
        ...            "penalty/fit/residual": [1e-3, 1e-4]}
        >>> ax = mlox.plot.health(history)
        >>> ax.get_yscale(), [line.get_label() for line in ax.get_lines()]
        ('log', ['penalty/fit gap', 'penalty/fit residual'])
    """
    check_history("health", history)
    edges = _find_edges(history)
    owned, ax = ax is None, take_axes("health", ax, (7.0, 3.6))
    ax.set_yscale("log")
    handles: list[Any] = []
    signs: list[bool] = []
    for number, (edge, kinds) in enumerate(edges.items()):
        for kind in kinds:
            series = read_series("health", history, f"{edge}/{kind}")
            handles.append(
                _draw_size(ax, number, KINDS[kind], f"{edge} {kind}", series)
            )
            signs.append(bool((series.mean < 0).any()))
    if any(signs):
        options = {"s": 14, "facecolors": "none", "edgecolors": "gray"}
        handles.append(ax.scatter([], [], label="open: negative", **options))
    shown = [kind for kind in KINDS if any(kind in kinds for kinds in edges.values())]
    units = {"gap": "gap [upper's loss]", "residual": "residual [relative]"}
    finish(ax, "cycle", ", ".join(units[kind] for kind in shown))
    add_legend(ax, owned, handles)
    return ax


def _find_edges(history: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return which of gap and residual each edge "upper/lower" has."""
    edges: dict[str, list[str]] = {}
    for name in list_metrics(history):
        edge, _, kind = name.rpartition("/")
        if kind in KINDS and "/" in edge:
            edges.setdefault(edge, []).append(kind)
    if not edges:
        raise ValueError(
            "plot.health: the history has neither a gap nor a residual; expected names "
            f"such as 'penalty/fit/gap', found {summarize(list(history))}. Answers "
            "of mlox.Implicit have them, unless the engine has metrics='none'; "
            "plot.history draws the losses."
        )
    return edges


def _draw_size(ax: Any, number: int, dashes: str, label: str, series: Series) -> Any:
    color = look_of(number).color
    size = np.maximum(np.abs(series.mean), SMALLEST)
    (line,) = ax.plot(
        series.cycles, size, color=color, linestyle=dashes, label=show(label)
    )
    if len(series.cycles) <= FEW or (series.mean < 0).any():
        negative = series.mean < 0
        faces = np.where(negative, "none", color)
        ax.scatter(
            series.cycles, size, s=14, facecolors=faces, edgecolors=color, zorder=3
        )
    return line
