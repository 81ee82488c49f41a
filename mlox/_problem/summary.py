"""Show a problem on a few lines, with whatever stands in the place of its arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from mlox._problem.optimizer_name import name_optimizer
from mlox._utils.describe import show_call, summarize
from mlox._utils.types import PyTree

WIDTH = 88
INDENT = " " * 4
LONGEST = 66
# What needs no words, since most problems have it.
USUAL = {
    "model_state": "None",
    "memory": "None",
    "loss_fn": "<lambda>",
    "unroll_steps": "1",
    "tasks": "None",
    "tasks_at_once": "None",
    "shared_batches": "False",
    "warmup_steps": "0",
    "apply_fn": "None",
    "sample": "None",
    "reset": "None",
    "project": "None",
    "trainable": "None",
    "meta_trainable": "None",
    "hyperparams": "None",
}
OPTIONS = [name for name in USUAL if name not in ("model_state", "memory", "loss_fn")]


class Bare(str):
    """A text that shows itself without quotes.

    Example:
        >>> {"w": Bare("float32[2]")}
        {'w': float32[2]}
    """

    def __repr__(self) -> str:
        return str(self)


def show_problem(parts: Mapping[str, Any]) -> str:
    """Show the attributes of a problem as a call, without arrays and defaults.

    JAX builds problems of tracers, abstract values and placeholders, too, and a state
    that was donated is still there, without its arrays: all of them can be shown.
    """
    arrays = [
        parts[name] for name in ("params", "opt_state", "model_state", "memory", "step")
    ]
    donated = ["donated"] if any(map(is_deleted, leaves_of(arrays))) else []
    texts = {
        "step": show_number(parts["step"]),
        "params": show_arrays(parts["params"]),
        "model_state": show_arrays(parts["model_state"]),
        "memory": show_arrays(parts["memory"]),
        "loss_fn": show_call(parts["loss_fn"]),
        "tx": name_optimizer(parts["tx"]),
        "method": show_call(parts["method"]),
        **{name: show_call(parts[name]) for name in OPTIONS},
    }
    given = [f"{n}={text}" for n, text in texts.items() if text != USUAL.get(n)]
    return f"Problem({fill([repr(parts['name']), *donated, *given])})"


def fill(texts: Sequence[str]) -> str:
    """Join texts by commas, on as few lines as they need."""
    lines = [texts[0]]
    width = WIDTH - len("Problem()")
    for text in texts[1:]:
        if len(lines[-1]) + len(text) + 3 > width:
            lines.append(f"{INDENT}{text}")
            width = WIDTH
        else:
            lines[-1] += f", {text}"
    return ",\n".join(lines)


def show_arrays(tree: PyTree) -> str:
    """Show a pytree of arrays by dtypes and shapes, or by their number if it is large.

    Example:
        >>> show_arrays({"w": np.zeros((2, 3)), "b": np.zeros(3)})
        "{'b': float64[3], 'w': float64[2, 3]} (9 numbers)"
        >>> show_arrays([np.zeros((100, 100))] * 12)
        '12 arrays of float64 (120,000 numbers)'
    """
    leaves = leaves_of(tree)
    if not leaves:
        return summarize(tree, LONGEST)
    text = repr(jax.tree.map(lambda leaf: Bare(show_type(leaf)), tree))
    if len(text) > LONGEST or "\n" in text:
        dtypes = dict.fromkeys(show_type(leaf).partition("[")[0] for leaf in leaves)
        text = f"{len(leaves)} arrays of {', '.join(dtypes)}"
    shapes = [shape_of(leaf) for leaf in leaves]
    tells_it = len(shapes) == 1 and len(shapes[0] or ()) < 2
    count = count_numbers(tree)
    return text if tells_it or not count else f"{text} ({count:,} numbers)"


def count_numbers(tree: PyTree) -> int:
    """Count the numbers in the arrays of a pytree.

    Example:
        >>> count_numbers({"w": np.zeros((2, 3)), "b": np.zeros(3)})
        9
    """
    shapes = map(shape_of, leaves_of(tree))
    return sum(math.prod(shape) for shape in shapes if shape is not None)


def leaves_of(tree: PyTree) -> list[Any]:
    """List the leaves of a pytree; none if it is one that JAX cannot flatten."""
    try:
        return jax.tree.leaves(tree)
    except (TypeError, ValueError):  # such as keys that cannot be sorted
        return []


def shape_of(leaf: Any) -> tuple[int, ...] | None:
    """Return the shape of an array, concrete or abstract; None for anything else."""
    kinds = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
    return tuple(leaf.shape) if isinstance(leaf, kinds) else None


def is_deleted(leaf: Any) -> bool:
    """Return whether an array was donated, so that its numbers are gone."""
    concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
    return concrete and leaf.is_deleted()


def show_type(leaf: Any) -> str:
    """Show a leaf by dtype and shape; a text, such as that of an error, as it is."""
    return leaf if isinstance(leaf, str) else summarize(leaf)


def show_number(value: Any) -> str:
    """Show a scalar by its value if this process has it, else by its type."""
    abstract = isinstance(value, Tracer | jax.ShapeDtypeStruct)
    if shape_of(value) != () or abstract or is_deleted(value):
        return show_type(value)
    here = not isinstance(value, jax.Array) or value.is_fully_replicated
    return str(np.asarray(value)) if here else show_type(value)
