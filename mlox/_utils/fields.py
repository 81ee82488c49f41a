"""Checks of values: one table for options of runs, parts of problems and fields."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from mlox._utils.describe import find_non_array, show_differences, summarize
from mlox._utils.types import PyTree


class Kind(NamedTuple):
    """A kind of value.

    Attributes:
        expected: What it is, in words, after "expected".
        accepts: Whether a value is of it.
        error: The type of the error if it is not.
    """

    expected: str
    accepts: Callable[[Any], bool]
    error: type[Exception] = ValueError


def is_int(value: Any) -> bool:
    """Return whether a value is an integer of Python or NumPy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite real number, and no bool."""
    real = isinstance(value, int | float | np.integer | np.floating)
    return real and not isinstance(value, bool) and math.isfinite(value)


COUNT = Kind("a positive int", lambda x: is_int(x) and x >= 1)
COUNT_OR_ZERO = Kind("an int, 0 or more", lambda x: is_int(x) and x >= 0)
POSITIVE = Kind("a finite number > 0", lambda x: is_number(x) and x > 0)
NOT_NEGATIVE = Kind("a finite number >= 0", lambda x: is_number(x) and x >= 0)
FLAG = Kind("True or False", lambda x: isinstance(x, bool), TypeError)
FUNCTION = Kind("a function", callable, TypeError)
NAME_OF_SCALAR = Kind(
    "the name of a scalar, e.g. 'validation/accuracy' or 'classifier/loss'",
    lambda x: isinstance(x, str) and "/" in x,
)
PATH = Kind("a path", lambda x: isinstance(x, str | os.PathLike), TypeError)


def instance_of(kind: Any, expected: str) -> Kind:
    """Return the kind of the instances of a class, or of a union of classes."""
    return Kind(expected, lambda x: isinstance(x, kind), TypeError)


def one_of(*choices: str) -> Kind:
    """Return the kind of a choice between some strings."""
    return Kind(
        _join(map(repr, choices)), lambda x: isinstance(x, str) and x in choices
    )


def optional(kind: Kind) -> Kind:
    """Return a kind that accepts None as well."""
    shown = _join([*kind.expected.split(" or "), "None"])
    return kind._replace(expected=shown, accepts=lambda x: x is None or kind.accepts(x))


def _join(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}"


def check(label: str, value: Any, kind: Kind, hint: str = "") -> None:
    """Raise the error of a kind if a value is not of it.

    Example:
        >>> check("CG: iterations", 0, COUNT)
        Traceback (most recent call last):
        ValueError: CG: iterations is 0; expected a positive int.
    """
    if kind.accepts(value):
        return
    message = f"{label} is {summarize(value)}; expected {kind.expected}."
    raise kind.error(f"{message} {hint}".rstrip())


def check_function(label: str, value: Any, form: str) -> None:
    """Raise TypeError unless a value is a function of some number of arguments.

    Example:
        >>> check_function("project", lambda params, rate: params, "(params) -> params")
        Traceback (most recent call last):
        TypeError: project takes (params, rate); expected a function (params) -> params.
    """
    kind = FUNCTION._replace(expected=f"a function {form}")
    check(label, value, kind)
    try:
        signature = inspect.signature(value, follow_wrapped=False)
    except (TypeError, ValueError):  # some of those that are written in C have none
        return
    count = form.split(")")[0].count(",") + 1
    try:
        signature.bind(*range(count))
    except TypeError as error:
        takes = ", ".join(signature.parameters)
        raise TypeError(
            f"{label} takes ({takes}); expected {kind.expected}."
        ) from error


def check_arrays(
    label: str, tree: Any, hint: str = "", error: type[Exception] = TypeError
) -> None:
    """Raise unless all leaves of a pytree are arrays of numbers, or numbers.

    Example:
        >>> check_arrays("batches['fit']", {"x": "text"})
        Traceback (most recent call last):
        TypeError: batches['fit']['x'] is 'text' of type str; expected an array.
    """
    if wrong := find_non_array(tree):
        space = "" if wrong.startswith(("[", ".")) else " "
        raise error(f"{label}{space}{wrong}; expected an array. {hint}".rstrip())


def check_like(
    label: str,
    tree: Any,
    like: PyTree,
    owner: str,
    hint: str,
    error: type[Exception] = ValueError,
) -> None:
    """Raise unless a pytree has the structure, shapes and dtypes of another one.

    Example:
        >>> check_like("project(p)", np.int32(1), np.float32(1), "params", "Cast it.")
        Traceback (most recent call last):
        ValueError: project(p) does not fit params: it is int32[], expected float32[]. \
Cast it.
    """
    check_arrays(label, tree, hint, error)
    if wrong := show_differences(tree, like):
        raise ValueError(f"{label} does not fit {owner}: {wrong}. {hint}")


PLAIN = (
    "Give a plain Python value, e.g. float(value): this field is static (it is hashed "
    "and compared), so it cannot hold an array or a traced value."
)


def check_fields(owner: Any, **kinds: Kind) -> None:
    """Raise if a field of a frozen value is not of its kind."""
    for name, kind in kinds.items():
        value = vars(owner)[name]
        plain = value is None or isinstance(value, bool | int | float | str)
        hint = "" if plain else PLAIN
        check(f"{type(owner).__name__}: {name}", value, kind, hint)
