"""Name an optax optimizer, for people: optax keeps no names, but its closures have."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import optax

from mlox._utils.describe import show_call

COMPOSERS = ("chain", "named_chain", "with_extra_args_support")
LEARNING_RATES = ("scale", "scale_by_schedule")


def name_optimizer(tx: Any) -> str:
    """Return the names of the transformations that an optimizer is composed of.

    Example:
        >>> name_optimizer(optax.sgd(0.1))
        'sgd'
        >>> name_optimizer(optax.chain(optax.clip(1.0), optax.adam(0.1)))
        'chain(clip, scale_by_adam)'
    """
    if not isinstance(tx, optax.GradientTransformation):
        return show_call(tx)
    names = [name for name in _names_of(tx.update) if name != "identity"]
    if names and names[-1] in LEARNING_RATES:
        names = names[:-1] or ["sgd"]
    return (
        f"chain({', '.join(names)})" if len(names) > 1 else (names or ["identity"])[0]
    )


def _names_of(update: Any) -> Iterator[str]:
    """Yield the factories of an update function, those inside a chain one by one."""
    update = inspect.unwrap(update)
    if not inspect.isroutine(update):
        yield show_call(update)
        return
    factory = update.__qualname__.partition(".")[0]
    if factory not in COMPOSERS:
        yield factory
        return
    for value in inspect.getclosurevars(update).nonlocals.values():
        for inner in _updates_in(value):
            yield from _names_of(inner)


def _updates_in(value: Any) -> Iterator[Any]:
    """Yield the update functions in a value that a closure of optax holds."""
    if isinstance(value, optax.GradientTransformation):
        yield value.update
    elif inspect.isfunction(value):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for inner in value:
            yield from _updates_in(inner)
