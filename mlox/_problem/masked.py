"""Parameters of which a transformation sees a part: `optax.masked`, `partition`."""

from __future__ import annotations

from typing import Any

import jax
import optax

from mlox._utils.types import PyTree


def fill_masked(part: PyTree, whole: PyTree) -> PyTree:
    """Return a part of a pytree, with what is masked in it from the whole one.

    Example:
        >>> fill_masked({"w": 1.0, "b": optax.MaskedNode()}, {"w": 2.0, "b": 3.0})
        {'b': 3.0, 'w': 1.0}
    """
    fill = lambda new, old: old if _is_masked(new) else new
    return jax.tree.map(fill, part, whole, is_leaf=_is_masked)


def mask_like(part: PyTree, whole: PyTree) -> PyTree:
    """Return a whole pytree, masked as a part is.

    Example:
        >>> mask_like({"w": 1.0, "b": optax.MaskedNode()}, {"w": 2.0, "b": 3.0})
        {'b': MaskedNode(), 'w': 2.0}
    """
    mask = lambda one, leaf: one if _is_masked(one) else leaf
    return jax.tree.map(mask, part, whole, is_leaf=_is_masked)


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)
