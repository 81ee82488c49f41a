"""Draw the weights of examples, or of whatever else is weighted."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mlox._utils.describe import summarize
from mlox.plot._axes import add_legend, finish, look_of, show, take_axes

MOST_GROUPS = 12
BINS = 30
HATCHES = ("", "//", "..", "\\\\", "xx", "++")


def weights(weights: Any, groups: Any = None, *, ax: Any = None) -> Any:
    """Draw how weights are distributed: one histogram for each group.

    The heights are the shares of a group, so that groups of different sizes compare; a
    line marks the mean of each.

    Args:
        weights: An array of numbers, or a pytree of arrays, flattened.
        groups: For each weight the group that it belongs to: strings, integers or bools
            of the same shape; None for one group.
        ax: The matplotlib axes; None makes a new figure.

    Returns:
        The matplotlib axes.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `ax` is no axes.
        ValueError: If the weights are no finite numbers, or the groups do not fit them.

    Example:
        >>> import mlox
        >>> ax = mlox.plot.weights([0.9, 0.8, 0.1], ["clean", "clean", "wrong"])
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['clean: 2, mean 0.85', 'wrong: 1, mean 0.1']
    """
    values = _read_weights(weights)
    members = _split(values, groups)
    owned, ax = ax is None, take_axes("weights", ax, (7.0, 3.6))
    bins = np.histogram_bin_edges(values, BINS, _find_range(values))
    handles = [
        _draw_group(ax, number, name, group, bins)
        for number, (name, group) in enumerate(members.items())
    ]
    finish(ax, "weight", "share of the group" if len(members) > 1 else "share")
    add_legend(ax, owned, handles)
    return ax


def _read_weights(weights: Any) -> np.ndarray:
    try:
        leaves = [np.ravel(np.asarray(x, float)) for x in jax.tree.leaves(weights)]
    except (TypeError, ValueError):
        leaves = []
    values = np.concatenate(leaves) if leaves else np.zeros(0)
    if not values.size or not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        shown = f", of which {bad} are not finite" if bad else ""
        raise ValueError(
            f"plot.weights: weights are {summarize(weights)}{shown}; expected at least "
            "one finite number, and no other ones. Leave the others out."
        )
    return values


def _find_range(values: np.ndarray) -> tuple[float, float]:
    """Return the range of the bins, wide enough that rounding does not merge them."""
    low, high = float(values.min()), float(values.max())
    size = max(abs(low), abs(high))
    half = max(0.5, 1e-6 * size) if high - low <= 1e-12 * size else 0.0
    return low - half, high + half


def _split(values: np.ndarray, groups: Any) -> dict[str, np.ndarray]:
    """Return the weights of each group, in the order of the groups."""
    if groups is None:
        return {"all": values}
    leaves = [np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(groups)]
    labels = np.concatenate(leaves) if leaves else np.zeros(0)
    names = np.unique(labels) if labels.dtype.kind in "biuSU" else labels[:0]
    if labels.size != values.size or not 0 < len(names) <= MOST_GROUPS:
        raise ValueError(
            f"plot.weights: groups are {summarize(groups)} with "
            f"{summarize(sorted(set(labels.tolist()), key=str))}; expected "
            f"{values.size} strings, integers or bools, one for each weight, of at "
            f"most {MOST_GROUPS} groups."
        )
    return {str(name): values[labels == name] for name in names}


def _draw_group(
    ax: Any, number: int, name: str, group: np.ndarray, bins: np.ndarray
) -> Any:
    look = look_of(number)
    _, _, (shape,) = ax.hist(
        group,
        bins,
        weights=np.full(group.size, 1 / group.size),
        histtype="stepfilled",
        facecolor=(look.color, 0.3),
        edgecolor=look.color,
        hatch=HATCHES[number % len(HATCHES)],
        label=show(f"{name}: {group.size:,}, mean {group.mean():.3g}"),
    )
    ax.axvline(group.mean(), color=look.color, linestyle=look.dashes, linewidth=1.2)
    return shape
