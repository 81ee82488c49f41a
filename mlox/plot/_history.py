"""Draw metrics of a run over its cycles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mlox._utils.describe import summarize
from mlox._utils.fields import Kind, check
from mlox.plot._axes import FEW, add_legend, finish, look_of, show, take_axes
from mlox.plot._columns import Series, check_history, list_metrics, read_all

NAMES = Kind(
    "a name or a list of names of metrics, or None for the losses",
    lambda x: isinstance(x, list | tuple) and all(isinstance(n, str) for n in x),
    TypeError,
)
DECADES = 2.0  # from the least value to the largest one, for a logarithmic axis


def history(
    history: Mapping[str, Any],
    names: str | Sequence[str] | None = None,
    *,
    ax: Any = None,
) -> Any:
    """Draw metrics of a run over its cycles, and mark the best cycle if there is one.

    A metric that is no scalar, such as one with a value for each task, is drawn as its
    mean in a band from its least to its largest value. The vertical axis is logarithmic
    if all values are positive and span two decades.

    Args:
        history: What `engine.run` returns, or a dict from names to columns of your own.
        names: The metrics to draw; None means all losses, or all metrics if there are
            no losses. Scores have names such as "validation/accuracy".
        ax: The matplotlib axes; None makes a new figure.

    Returns:
        The matplotlib axes.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If an argument is of the wrong kind.
        ValueError: If the history lacks a name, or holds something else than numbers.

    Example:
        >>> import mlox
        >>> history = {
        ...     "cycle": [10, 20], "fit/loss": [0.7, 0.4], "penalty/loss": [0.9, 0.8]}
        >>> ax = mlox.plot.history(history)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['fit/loss', 'penalty/loss']
    """
    check_history("history", history)
    series = read_all("history", history, _choose_names(history, names))
    owned, ax = ax is None, take_axes("history", ax, (7.0, 3.6))
    handles = [_draw_series(ax, number, each) for number, each in enumerate(series)]
    if "best_cycle" in history and (best := int(history["best_cycle"])):
        label = f"best: cycle {best}"
        handles.append(ax.axvline(best, color="gray", linestyle=":", label=label))
    kinds = {each.name.rpartition("/")[2] for each in series}
    kind = show(series[0].name) if len(series) == 1 else ", ".join(sorted(kinds))
    if _is_wide(series):
        ax.set_yscale("log")
    finish(ax, "cycle", kind if len(kinds) == 1 else "value")
    if len(handles) > 1:
        add_legend(ax, owned, handles)
    return ax


def _choose_names(history: Mapping[str, Any], names: Any) -> Sequence[str]:
    known = list_metrics(history)
    if names is None:
        losses = [name for name in known if name.endswith("/loss")]
        names = losses or known
        if not names:
            raise ValueError(
                f"plot.history: the history has no metrics, only {list(history)}. Run "
                "at least one cycle."
            )
        return names
    names = [names] if isinstance(names, str) else names
    check("plot.history: names", names, NAMES)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(
            f"plot.history: names are {summarize(list(names))}; expected at least one, "
            f"and only metrics of the history: {summarize(known, 400)}."
        )
    return names


def _draw_series(ax: Any, number: int, series: Series) -> Any:
    look = look_of(number)
    marker = look.marker if len(series.cycles) <= FEW else None
    (line,) = ax.plot(
        series.cycles,
        series.mean,
        color=look.color,
        linestyle=look.dashes,
        marker=marker,
        markersize=3.5,
        label=show(series.name),
    )
    if not series.is_scalar:
        ax.fill_between(
            series.cycles,
            series.low,
            series.high,
            color=look.color,
            alpha=0.2,
            linewidth=0,
        )
    return line


def _is_wide(series: Iterable[Series]) -> bool:
    """Return whether a logarithmic axis shows the series better."""
    values = np.concatenate([np.append(each.low, each.high) for each in series])
    values = values[np.isfinite(values)]
    if not values.size or values.min() <= 0:
        return False
    return bool(np.log10(values.max()) - np.log10(values.min()) >= DECADES)
