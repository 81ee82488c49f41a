"""Problems as pytrees: a compiled step takes them apart and rebuilds them each call."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any, TypeVar

import jax

T = TypeVar("T")

ARRAYS = ("params", "opt_state", "model_state", "rng", "step", "loss_scale", "memory")
STATIC = "_static"  # the attribute under which an object keeps its `Static`


class Static:
    """What is static in a problem, one object for all states of a run.

    Attributes:
        values: The static attributes; two are equal if these are.
        attributes: All attributes by name, with None for the arrays.
    """

    __slots__ = ("attributes", "values")

    def __init__(self, names: tuple[str, ...], values: tuple[Any, ...]) -> None:
        self.values = values
        self.attributes = dict.fromkeys(ARRAYS) | dict(zip(names, values, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.values == other.values

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        return repr(self.values)


def register_problem(cls: type[T]) -> type[T]:
    """Register a frozen dataclass as a pytree with the leaves `ARRAYS`.

    The result is that of `jax.tree_util.register_dataclass`, which calls the
    constructor: one of a frozen dataclass sets its fields one by one, 2.6 us for a
    problem. Here what is static is gathered once, and copied as one dict.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    assert {f.name for f in fields if not f.metadata} == set(ARRAYS)
    names = tuple(f.name for f in fields if f.metadata)
    get_values = operator.attrgetter(*names)
    keys = tuple(map(jax.tree_util.GetAttrKey, ARRAYS))

    # Arrays are named one by one, as a loop over their names takes twice as long.
    def flatten(value: T) -> tuple[tuple[Any, ...], Static]:
        own = value.__dict__
        static = own.get(STATIC)
        if static is None:
            static = own[STATIC] = Static(names, get_values(value))
        arrays = (
            own["params"],
            own["opt_state"],
            own["model_state"],
            own["rng"],
            own["step"],
            own["loss_scale"],
            own["memory"],
        )
        return arrays, static

    def unflatten(static: Static, arrays: Any) -> T:
        value = object.__new__(cls)
        own = value.__dict__
        own.update(static.attributes)
        (
            own["params"],
            own["opt_state"],
            own["model_state"],
            own["rng"],
            own["step"],
            own["loss_scale"],
            own["memory"],
        ) = arrays
        own[STATIC] = static
        return value

    def flatten_with_keys(value: T) -> tuple[Any, Static]:
        arrays, static = flatten(value)
        return tuple(zip(keys, arrays, strict=True)), static

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
