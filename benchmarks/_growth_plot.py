"""The pictures of benchmarks/growth.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from _growth_axes import AXES, QUANTITIES
from matplotlib.ticker import NullFormatter

COLORS = ("#0b5cad", "#6fb1e0", "#2a9d8f", "#6a4c93", "#d1495b", "#e07a00")
LABELS = {
    "equations": "equations",
    "trace": "trace, seconds",
    "compile": "compile, seconds",
    "time": "one cycle, seconds",
    "memory": "memory, bytes",
}


def draw(name: str, found: Mapping[str, Any], path: Path) -> None:
    """Draw the picture of an axis, a panel for each quantity."""
    plt.rcParams.update(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, panels = plt.subplots(2, 3, figsize=(9, 5.2))
    for panel, quantity in zip(panels.flat, QUANTITIES, strict=False):
        _draw_panel(panel, name, found, quantity)
    names = panels.flat[0].get_legend_handles_labels()
    panels.flat[-1].axis("off")
    panels.flat[-1].legend(*names, loc="center", frameon=False)
    figure.suptitle(f"Growth with the {name}")
    figure.tight_layout()
    # Without the version of matplotlib in it the same results give the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _draw_panel(panel: Any, name: str, found: Mapping[str, Any], quantity: str) -> None:
    axis = AXES[name]
    place = QUANTITIES.index(quantity)
    for color, (method, one) in zip(COLORS, found.items(), strict=False):
        sizes, values = np.array(one["sizes"], float), np.array(one[quantity], float)
        panel.plot(
            sizes, values, "o-", color=color, label=method, linewidth=1.5, markersize=3
        )
        bound = _bound(axis.exponential, sizes, axis.series[method].bounds[place])
        # The bound goes through the middle, from which exponents are fitted.
        half = len(sizes) // 2
        panel.plot(
            sizes[half:],
            values[half] * bound[half:] / bound[half],
            "--",
            color=color,
            linewidth=1,
        )
    panel.plot([], [], "--", color="#777777", linewidth=1, label="bound")
    if not axis.exponential:
        panel.set_xscale("log")
    else:
        panel.set_xticks(sizes)
    panel.set(yscale="log", xlabel=axis.size, title=LABELS[quantity])
    panel.grid(alpha=0.25)
    panel.yaxis.set_minor_formatter(NullFormatter())
    _widen(panel)


def _bound(exponential: bool, sizes: Sequence[float], bound: float) -> np.ndarray:
    return np.power(float(bound), sizes) if exponential else np.power(sizes, bound)


def _widen(panel: Any) -> None:
    """Show at least a decade, so that noise does not look like growth."""
    low, high = panel.get_ylim()
    if high < 10 * low:
        middle = (low * high) ** 0.5
        panel.set_ylim(middle / 10**0.5, middle * 10**0.5)
