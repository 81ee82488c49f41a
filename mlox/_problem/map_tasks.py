"""Functions of arguments of which some have an axis of tasks, mapped over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlox._utils.chunks import vmap_in_chunks
from mlox._utils.types import PyTree


def map_over_tasks(
    label: str,
    tasks: int,
    at_once: int | None,
    function: Callable[..., Any],
    *own: PyTree,
) -> Callable[..., Any]:
    """Return (*args, **kwargs) -> function(*own, *args, **kwargs), for each task.

    The arrays among the arguments have a leading axis of tasks, except that a single
    PRNG key is split, so that no two tasks share their random numbers. Other leaves,
    such as bools, strings and functions, are passed on as they are.

    Args:
        label: Whose tasks, for errors.
        tasks: Their number.
        at_once: How many are computed at a time; None for all.
        function: What is applied to one task.
        own: Pytrees of arrays with that axis.

    Raises:
        ValueError: If an array among the arguments has no such axis.

    Example:
        >>> def scale(params, x, double):
        ...     return params * x * (2 if double else 1)
        >>> mapped = map_over_tasks("fit", 2, None, scale, jnp.array([1.0, 3.0]))
        >>> print(mapped(jnp.ones(2), double=True))
        [2. 6.]
    """

    def mapped(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten_with_path((args, kwargs))
        rows = [_split_key(leaf, tasks) for _, leaf in leaves]
        arrays = {i: x for i, x in enumerate(rows) if _is_array(x)}
        for i, x in arrays.items():
            if x.ndim == 0 or x.shape[0] != tasks:
                where = _describe(leaves[i][0])
                raise ValueError(
                    f"{label} has {tasks} tasks, and was called with {where} of shape "
                    f"{list(x.shape)}; expected a leading axis of {tasks} tasks. Use "
                    f"jnp.broadcast_to(x, ({tasks}, *x.shape)) for what they share, or "
                    "a Python number."
                )

        def of_task(arrays: dict[int, Any], own: Any) -> Any:
            given = [arrays.get(i, x) for i, x in enumerate(rows)]
            args, kwargs = jax.tree.unflatten(structure, given)
            return function(*own, *args, **kwargs)

        return vmap_in_chunks(of_task, tasks, at_once)(arrays, own)

    return mapped


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _split_key(leaf: Any, tasks: int) -> Any:
    single = _is_key(leaf) and leaf.ndim == 0
    return jax.random.split(leaf, tasks) if single else leaf


def _describe(path: tuple[Any, ...]) -> str:
    """Return the name of an argument from its path in (args, kwargs)."""
    kind, first, *rest = path
    shown = "argument " + (str(first.idx) if kind.idx == 0 else f"{first.key}")
    return shown + jax.tree_util.keystr(tuple(rest))
