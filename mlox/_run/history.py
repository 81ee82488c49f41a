"""The history of a run: a dict of columns that shows itself on a few lines."""

from __future__ import annotations

from typing import Any, TypeGuard

import jax
import numpy as np

from mlox._utils.describe import count, summarize

MOST = 40


class History(dict[str, np.ndarray]):
    """A dict from metrics to arrays; its `repr` shows the first and the last values.

    Example:
        >>> History(cycle=np.array([5, 10]), loss=np.array([0.7, 0.0123456]))
        History of 2 log points up to cycle 10
          loss  0.7 -> 0.0123
    """

    def __repr__(self) -> str:
        cycles = self.get("cycle")
        head = "History"
        if _is_column(cycles):
            head += f" of {count(len(cycles), 'log point')}"
            head += f" up to cycle {cycles[-1]}" if len(cycles) else ""
        names = [name for name in self if name != "cycle"]
        shown = names[:MOST]
        width = max(map(len, shown), default=0)
        rows = [f"{name:<{width}}  {_show(self[name])}" for name in shown]
        more = len(names) - len(shown)
        return "\n  ".join([head, *rows, *([f"and {more} more"] if more else [])])


def _show(column: Any) -> str:
    if not isinstance(column, np.ndarray) or column.ndim > 1 or not column.size:
        return summarize(column)
    ends = column.ravel()[[0, -1] if column.size > 1 else [0]]
    return " -> ".join(f"{x:.3g}" if x.dtype.kind == "f" else str(x) for x in ends)


def _is_column(value: Any) -> TypeGuard[np.ndarray]:
    return isinstance(value, np.ndarray) and value.ndim == 1


# A dict for `jax.tree`, too.
jax.tree_util.register_pytree_with_keys(
    History,
    lambda history: (
        [(jax.tree_util.DictKey(name), history[name]) for name in sorted(history)],
        tuple(sorted(history)),
    ),
    lambda names, columns: History(zip(names, columns, strict=True)),
)
