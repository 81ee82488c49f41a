"""Error messages and notes: descriptions of values, short enough for a screen."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import operator
import re
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlox._utils.types import PyTree


def summarize(tree: Any, limit: int = 200) -> str:
    """Show a pytree for an error: arrays as dtype and shape, traced ones too.

    Example:
        >>> summarize({"w": jnp.ones(2, jnp.float32), "name": "x"})
        "{'name': 'x', 'w': 'float32[2]'}"
    """
    arrays = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct

    def shown(leaf: Any) -> Any:
        array = isinstance(leaf, arrays)
        return f"{leaf.dtype}{list(leaf.shape)}" if array else leaf

    if isinstance(tree, arrays):
        text = shown(tree)
    elif isinstance(tree, Iterator):  # JAX warns of those as leaves
        text = repr(tree)
    else:
        try:
            text = repr(jax.tree.map(shown, tree))
        except ValueError:  # JAX cannot sort the keys of a dict
            text = repr(tree)
    text = re.sub(r"\s*\n\s*", " ", text)  # a problem shows itself on a few lines
    return text if len(text) <= limit else text[:limit] + "..."


def count(number: int, what: str) -> str:
    """Show a number of things.

    Example:
        >>> count(1, "step"), count(1200, "step")
        ('1 step', '1,200 steps')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


OFF = {"off": True}
"""The metadata of a field whose default is not shown."""


def show_call(self: Any) -> str:
    """Show a frozen value as the call that makes it, without what is off by default.

    It serves as a `__repr__`, too. A field whose default is off though it is true, such
    as a count of 1, says so: `dataclasses.field(default=1, metadata=OFF)`.

    Example:
        >>> import mlox
        >>> show_call(mlox.Implicit(mlox.CG(iterations=5)))
        'Implicit(CG(iterations=5))'
        >>> show_call(mlox.Implicit())
        'Implicit()'
    """
    if inspect.isroutine(self):
        return self.__name__
    if not dataclasses.is_dataclass(self) or isinstance(self, type):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(self))
    given: list[str] = []
    for field in dataclasses.fields(self):
        part = operator.attrgetter(field.name)(self)
        if part != field.default or (part and "off" not in field.metadata):
            # As one writes it: Implicit(CG(iterations=5)).
            plain = given or isinstance(part, bool | int | float | str)
            given.append(
                f"{field.name}={show_call(part)}" if plain else show_call(part)
            )
    return f"{type(self).__name__}({', '.join(given)})"


def find_non_array(tree: Any) -> str | None:
    """Describe the first leaf that is neither an array of numbers nor a number.

    Example:
        >>> find_non_array({"w": 1.0, "name": "x"})
        "['name'] is 'x' of type str"
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array):  # keys of random numbers, too
            continue
        dtype = np.asarray(leaf).dtype
        if not jnp.issubdtype(dtype, np.number) and dtype != np.bool_:
            name = jax.tree_util.keystr(path)
            return f"{name} is {summarize(leaf)} of type {type(leaf).__name__}".strip()
    return None


def leaf_types(tree: PyTree) -> dict[str, str]:
    """Return the dtype and shape of each leaf, by its path; None counts as a leaf.

    Example:
        >>> leaf_types({"w": jnp.ones(2, jnp.float32)})
        {"['w']": 'float32[2]'}
    """
    leaves = jax.tree_util.tree_leaves_with_path(
        jax.eval_shape(lambda x: x, tree), is_leaf=lambda x: x is None
    )
    return {jax.tree_util.keystr(path): summarize(leaf) for path, leaf in leaves}


def show_differences(given: PyTree, expected: PyTree, most: int = 3) -> str:
    """Name the first leaves in which two pytrees of arrays differ; "" if none do.

    Example:
        >>> show_differences({"w": jnp.float32(1)}, {"w": jnp.int32(1)})
        "['w'] is float32[], expected int32[]"
    """
    ours, theirs = leaf_types(given), leaf_types(expected)
    rows = [
        f"{path or 'it'} is {ours.get(path, 'missing')}, expected "
        f"{theirs.get(path, 'no such leaf')}"
        for path in dict.fromkeys([*ours, *theirs])
        if ours.get(path) != theirs.get(path)
    ]
    if len(rows) > most:
        rows = [*rows[:most], f"and {len(rows) - most} more"]
    structures = [jax.tree.structure(tree) for tree in (given, expected)]
    if not rows and structures[0] != structures[1]:
        shown = [summarize(structure) for structure in structures]
        rows = [f"the structure is {shown[0]}, expected {shown[1]}"]
    return "; ".join(rows)


@contextlib.contextmanager
def annotate_errors(
    what: str, missing: Mapping[str, str] | None = None, **given: Any
) -> Generator[None]:
    """Add a note to an error of a user's function: which one, and its arguments.

    Args:
        what: The function, such as "loss_fn of problem 'fit'".
        missing: What to do about an argument that is None, by its name. It is noted if
            the error speaks of None.
        **given: Its arguments.
    """
    try:
        yield
    except Exception as error:
        got = ", ".join(f"{name}={summarize(value)}" for name, value in given.items())
        called = f", called with {got}" if got else ""
        error.add_note(f"The error occurred in {what}{called}.")
        for name, remedy in (missing or {}).items():
            if given[name] is None and "None" in str(error):
                error.add_note(f"{name} is None: {remedy}")
        raise
