"""Batches from plain Python iterables: checked, converted and stacked."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlox._data.iterators import END
from mlox._utils.describe import show_differences, summarize
from mlox._utils.fields import check, instance_of
from mlox._utils.types import PyTree

DICT = instance_of(Mapping, "a dict {name of a problem: iterable of batches}")
ITERABLE = instance_of(Iterable, "an iterable of batches")
NUMERIC = "biufc"  # the kinds of NumPy's own numbers and truth values
ITERATOR = instance_of(Iterator, "an iterator")


def check_data(names: Iterable[str], data: Mapping[str, Any]) -> None:
    """Validate that `data` maps names of problems to iterables of batches, or None."""
    check("`data`", data, DICT)
    known = sorted(names)
    unknown = sorted(map(str, set(data) - set(known)))
    if unknown:
        raise ValueError(
            f"`data` names {unknown}; expected names among the problems {known}."
        )
    for name, series in data.items():
        if series is not None:
            check_series(f"data of {name!r}", series)


def check_series(label: str, series: Any) -> None:
    """Validate that something is an iterable of batches, and not a single batch."""
    several = isinstance(series, Mapping | tuple)
    if several or isinstance(series, str | np.ndarray | jax.Array):
        stars = "**" if isinstance(series, Mapping) else "*"
        remedy = f" If it holds several series, pass mlox.together({stars}them)."
        raise ValueError(
            f"{label} is one {type(series).__name__}, which looks like a single batch; "
            "expected an iterable of batches. Pass a list of batches, or "
            "itertools.repeat(batch) to use this one at every step." + remedy * several
        )
    check(label, series, ITERABLE, "Pass a list, or an object with __iter__.")


def stack_batches(
    steps_per_cycle: Mapping[str, int],
    iterators: Mapping[str, Iterator[Any] | None],
    cycles: int | None = None,
) -> dict[str, PyTree]:
    """Take the batches of one cycle, or of several, and stack them leaf by leaf.

    Every leaf is copied once, when its batch arrives, so a loader may fill the same
    buffer again and again. Dtypes do not change: float64 stays float64.

    Returns:
        {name: None, or the pytree of NumPy arrays with the leading axes
        `[steps_per_cycle[name]]`, or `[cycles, steps_per_cycle[name]]`}.

    Example:
        >>> batches = stack_batches({"inner": 2, "outer": 1}, {"inner": iter([1., 2.])})
        >>> batches["inner"], batches["outer"]
        (array([1., 2.]), None)
    """
    check_data(steps_per_cycle, iterators)
    hint = "Pass iter(...) or itertools.cycle(...), made once for all calls."
    for name, iterator in iterators.items():
        if iterator is not None:
            check(f"data of {name!r}", iterator, ITERATOR, hint)
    return take_batches(steps_per_cycle, iterators, cycles)


def take_batches(
    steps_per_cycle: Mapping[str, int],
    iterators: Mapping[str, Iterator[Any] | None],
    cycles: int | None = None,
) -> dict[str, PyTree]:
    """As `stack_batches`, of iterators that were checked: a run calls it often."""
    outer = () if cycles is None else (cycles,)
    return {
        name: _stack(name, iterators.get(name), (*outer, steps))
        for name, steps in steps_per_cycle.items()
    }


def as_arrays(name: str, batch: PyTree) -> PyTree:
    """Convert the leaves of a batch to arrays; those on a device stay there."""
    return jax.tree.map(
        lambda x: x if isinstance(x, jax.Array) else _as_array(name, x), batch
    )


def is_numeric(array: np.ndarray) -> bool:
    """Return whether an array holds numbers or truth values, bfloat16 included."""
    return array.dtype.kind in NUMERIC or bool(jnp.issubdtype(array.dtype, np.number))


def _stack(name: str, iterator: Iterator[Any] | None, lead: tuple[int, ...]) -> PyTree:
    """Fill one array per leaf, of shape `[*lead, ...]`, with the next batches."""
    if iterator is None:
        return None
    count = math.prod(lead)
    structure: Any = None  # that of the first batch, and its shapes and dtypes
    arrays, shapes, targets = [], [], []
    for number in range(count):
        batch = next(iterator, END)
        if batch is END:
            raise ValueError(
                f"data of {name!r} ran out after {number} of the {count} batches that "
                "are needed now; expected an iterator that does not end, e.g. "
                "itertools.cycle(...)."
            )
        leaves, found = jax.tree.flatten(batch)
        arrays = [_as_array(name, leaf) for leaf in leaves]
        if number == 0:
            structure, shapes = found, [(x.shape, x.dtype) for x in arrays]
            targets = [np.empty((count, *x.shape), x.dtype) for x in arrays]
        elif found != structure or shapes != [(x.shape, x.dtype) for x in arrays]:
            like = structure.unflatten([x[0] for x in targets])
            raise ValueError(
                f"batch {number + 1} of {name!r} differs from the first one of this "
                "cycle: "
                f"{_describe_difference(found.unflatten(arrays), like)}. All batches "
                "of a cycle need one structure, shape and dtype. Drop a short last "
                "batch (DataLoader: drop_last=True)."
            )
        for target, array in zip(targets, arrays, strict=True):
            target[number] = array
    stacked = [x.reshape(*lead, *x.shape[1:]) for x in targets]
    return jax.tree.unflatten(structure, stacked)


def _as_array(name: str, leaf: Any) -> np.ndarray:
    """Convert a leaf without copying it, where it allows that."""
    if type(leaf) is np.ndarray and leaf.dtype.kind in NUMERIC:
        return leaf
    problem = f"a batch of {name!r} has a leaf of type {type(leaf).__name__}"
    remedy = "expected arrays or numbers, in dicts, lists or tuples."
    try:
        array = np.asarray(leaf)
    except Exception as error:
        raise ValueError(f"{problem} (NumPy: {error}); {remedy}") from error
    if not is_numeric(array):
        raise ValueError(f"{problem} and dtype {array.dtype}; {remedy}")
    return array


def _describe_difference(batch: PyTree, like: PyTree) -> str:
    # Dtypes that differ in NumPy may be one in JAX, as float32 and float64 without x64.
    shown = f"it is {summarize(batch)}, expected {summarize(like)}"
    return show_differences(batch, like) or shown
