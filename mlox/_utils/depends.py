"""Whether a program uses a value: a question about its structure, for all numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters import partial_eval

from mlox._utils.types import PyTree


def depends(function: Callable[..., Any], x: PyTree, *given: Any) -> bool:
    """Return whether the program of `function(x, *given)` uses x for its result.

    Example:
        >>> depends(lambda x: 0.0 * x, 1.0), depends(lambda x: (x + 1.0, 2.0)[1], 1.0)
        (True, False)
    """
    return any(find_used(function, x, *given))


def find_used(function: Callable[..., Any], x: PyTree, *given: Any) -> list[bool]:
    """Return for each leaf of x whether the program of `function(x, *given)` uses it.

    Example:
        >>> find_used(lambda x: x["a"] + 1.0, {"a": 1.0, "b": 2.0})
        [True, False]
    """
    program = jax.make_jaxpr(function)(x, *given).jaxpr
    _, used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    return used[: len(jax.tree.leaves(x))]
