"""Pictures of reports, by matplotlib, which is imported when it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlox._check.figures import WRONG

SMALLEST, LARGEST = 1e-12, 1e3


def make_figure(title: str, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return a matplotlib figure and its axes, without a window."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "A picture needs matplotlib, which is not installed. Install it, e.g. by "
            "`pip install matplotlib`, or print the report."
        ) from error
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left")
    return figure, axes


def draw_errors(title: str, errors: Mapping[str, float]) -> Any:
    """Draw relative errors as bars, on a logarithmic scale."""
    figure, axes = make_figure(title, (7, 1 + 0.4 * len(errors)))
    axes.barh(list(errors), [shown(error) for error in errors.values()])
    axes.axvline(WRONG, linestyle="--", color="gray", label=f"wrong: {WRONG}")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    axes.set_xscale("log")
    axes.set_xlabel("relative error")
    axes.invert_yaxis()
    return figure


def draw_choice(
    title: str, points: Sequence[tuple[str, float, float, float | None]]
) -> Any:
    """Draw (name, seconds, error, bytes) as a cloud: left and down is better."""
    figure, axes = make_figure(title, (7, 4))
    largest = max((size or 0.0 for *_, size in points), default=0.0) or 1.0
    for name, seconds, error, size in points:
        area = 30 + 600 * (size or 0.0) / largest
        axes.scatter(1e3 * seconds, shown(error), s=area, alpha=0.6, label=name)
    # Markers of one size, whatever the memory is.
    legend = axes.legend(
        loc="upper left", bbox_to_anchor=(1, 1), frameon=False, title="area: memory"
    )
    for handle in legend.legend_handles:
        handle.set_sizes([60.0])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.1)
    axes.set_xlabel("time of one hypergradient [ms]")
    axes.set_ylabel("relative error")
    return figure


def shown(error: float) -> float:
    """Return an error that a logarithmic axis can show.

    Example:
        >>> shown(0.0), shown(float("nan"))
        (1e-12, 1000.0)
    """
    return float(min(max(error, SMALLEST), LARGEST)) if np.isfinite(error) else LARGEST
