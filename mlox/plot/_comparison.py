"""Draw what methods cost against how far off they are."""

from __future__ import annotations

from typing import Any

from mlox._check.comparison import Comparison
from mlox._check.draw import shown
from mlox._utils.fields import check, instance_of
from mlox.plot._axes import add_legend, finish, look_of, show, take_axes

COMPARISON = instance_of(Comparison, "a mlox.Comparison, as mlox.compare returns")
AREA, LARGEST = 40.0, 300.0  # of a marker, in square points
DECADE = 10.0  # from which a ratio of times has a logarithmic axis


def comparison(comparison: Comparison, *, ax: Any = None) -> Any:
    """Draw the cost of each method of a comparison against its error.

    Left and down is better. The area of a marker grows with the method's temporary
    memory. An error of 0 is drawn at 1e-12; times have a logarithmic axis if they span
    a decade.

    Args:
        comparison: What `mlox.compare` returns.
        ax: The matplotlib axes; None makes a new figure.

    Returns:
        The matplotlib axes.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If an argument is of the wrong kind.
        ValueError: If the comparison has no method.

    Example:
        >>> import mlox
        >>> from mlox._check.comparison import Candidate
        >>> row = Candidate("fit", "cg", 1.0, 1.0, 1e-6, 0.002, 512.0, None)
        >>> ax = mlox.plot.comparison(mlox.Comparison("penalty", "exact", (row,)))
        >>> ax.get_xlabel(), [t.get_text() for t in ax.get_legend().get_texts()]
        ('time of one hypergradient [ms]', ['cg'])
    """
    check("plot.comparison: comparison", comparison, COMPARISON)
    rows = comparison.rows
    if not rows:
        raise ValueError(
            f"plot.comparison: the comparison of {comparison.name!r} has no method; "
            "pass at least one to mlox.compare."
        )
    owned, ax = ax is None, take_axes("comparison", ax, (7.0, 3.6))
    most = max(row.memory or 0.0 for row in rows) or 1.0
    several = len({row.problem for row in rows}) > 1
    handles: list[Any] = []
    for number, row in enumerate(rows):
        look = look_of(number)
        points = ax.scatter(
            1e3 * row.seconds,
            shown(row.error),
            s=AREA + LARGEST * (row.memory or 0.0) / most,
            facecolor=(look.color, 0.5),
            edgecolor=look.color,
            marker=look.marker,
            label=show(f"{row.problem}: {row.name}" if several else row.name),
        )
        handles.append(points)
    ax.margins(0.12)
    ax.set_yscale("log")
    times = [row.seconds for row in rows]
    if max(times) >= DECADE * min(times):
        ax.set_xscale("log")
    else:  # ticks within a decade would be written over each other
        ax.set_xlim(left=0.0)
    ax.set_title(f"Hypergradient of {comparison.name!r}", loc="left")
    finish(ax, "time of one hypergradient [ms]", "relative error")
    add_legend(ax, owned, handles, "area: memory")
    for handle in ax.get_legend().legend_handles:  # of one size, whatever the memory
        handle.set_sizes([AREA])
    return ax
