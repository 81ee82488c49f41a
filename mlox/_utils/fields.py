"""Checks of the fields of static values, made once when a value is built."""

import math
from typing import Any


def check_count(owner: Any, name: str, value: Any) -> None:
    """Raise unless `value` is a positive int."""
    if not _is_int(value) or value < 1:
        _refuse(owner, name, "a positive int", value)


def check_optional_count(owner: Any, name: str, value: Any) -> None:
    """Raise unless `value` is a positive int or None."""
    if value is not None and (not _is_int(value) or value < 1):
        _refuse(owner, name, "a positive int or None", value)


def check_not_negative(owner: Any, name: str, value: Any) -> None:
    """Raise unless `value` is a finite number that is not negative."""
    if not _is_number(value) or not 0 <= value < math.inf:
        _refuse(owner, name, "a finite number >= 0", value)


def check_positive(owner: Any, name: str, value: Any) -> None:
    """Raise unless `value` is a finite positive number."""
    if not _is_number(value) or not 0 < value < math.inf:
        _refuse(owner, name, "a finite number > 0", value)


def check_optional_flag(owner: Any, name: str, value: Any) -> None:
    """Raise unless `value` is True, False or None."""
    if value is not None and not isinstance(value, bool):
        _refuse(owner, name, "True, False or None", value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse(owner: Any, name: str, expected: str, value: Any) -> None:
    message = f"{type(owner).__name__}: `{name}` must be {expected}, got {value!r}."
    if value is not None and not isinstance(value, bool | int | float | str):
        message += (
            " Give a plain Python value, e.g. float(value): this field is static (it "
            "is hashed and compared), so it cannot hold an array or a traced value."
        )
    raise ValueError(message)
