"""Batches from plain Python iterables: checked and stacked."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Batches = dict[str, Any]


def check_data(names: Iterable[str], data: Mapping[str, Any]) -> None:
    """Check that `data` maps names of problems to series of batches.

    Args:
        names: The names of all problems.
        data: Maps a name to an iterable of batches, or to None.

    Raises:
        TypeError: If `data` is no dict, or a value cannot be iterated over.
        ValueError: If a name is unknown, or a value looks like one single batch.
    """
    if not isinstance(data, Mapping):
        raise TypeError(
            f"`data` must be a dict {{name of a problem: iterable of batches}}, got "
            f"{type(data).__name__}."
        )
    known = sorted(names)
    unknown = sorted(map(str, set(data) - set(known)))
    if unknown:
        raise ValueError(
            f"`data` names {unknown}, but no problem is called so. Known: {known}."
        )
    for name, series in data.items():
        if series is not None:
            check_series(f"data of {name!r}", series)


def check_series(whose: str, series: Any) -> None:
    """Check that something is an iterable of batches, and no single batch.

    Args:
        whose: What it is, for errors.
        series: What was passed.

    Raises:
        TypeError: If it cannot be iterated over.
        ValueError: If it looks like one single batch.
    """
    if isinstance(series, Mapping | tuple | str | np.ndarray | jax.Array):
        several = ""
        if isinstance(series, Mapping | tuple):
            stars = "**" if isinstance(series, Mapping) else "*"
            several = f" If it holds several series, pass mlox.together({stars}them)."
        raise ValueError(
            f"{whose} is one {type(series).__name__}, which reads as a single batch, "
            f"but a series of batches was expected. Pass a list of batches, or "
            f"itertools.repeat(batch) to use this one at every step.{several}"
        )
    if not isinstance(series, Iterable):
        raise TypeError(
            f"{whose} must be an iterable of batches, got {type(series).__name__}. "
            f"Pass a list or an object with __iter__."
        )


def stack(
    steps_per_cycle: Mapping[str, int],
    iterators: Mapping[str, Iterator[Any] | None],
    cycles: int | None = None,
) -> Batches:
    """Take the batches of one cycle, or of several, and stack them leaf by leaf.

    Every leaf is copied once, when its batch arrives, so a loader may fill the same
    buffer again and again. Dtypes stay what they are: float64 stays float64.

    Args:
        steps_per_cycle: How many batches each problem uses in one cycle.
        iterators: Maps names of problems to iterators of batches. A batch is a pytree
            of arrays and numbers (all that `np.asarray` converts, PyTorch's tensors
            included). A problem without data is missing, or None.
        cycles: None, or a number of cycles that becomes one more leading axis.

    Returns:
        For every problem None, or the pytree of NumPy arrays with the leading axes
        `[steps_per_cycle[name]]`, or `[cycles, steps_per_cycle[name]]`.

    Raises:
        TypeError: If a value is not an iterator.
        ValueError: If a name is unknown, an iterator runs out, a leaf is neither an
            array nor a number, or the batches differ in structure, shape or dtype.

    Example:
        >>> batches = stack({"inner": 2, "outer": 1}, {"inner": iter([1.0, 2.0, 3.0])})
        >>> batches["inner"], batches["outer"]
        (array([1., 2.]), None)
    """
    check_data(steps_per_cycle, iterators)
    outer = () if cycles is None else (cycles,)
    return {
        name: _gather(name, iterators.get(name), (*outer, steps))
        for name, steps in steps_per_cycle.items()
    }


def as_arrays(name: str, batch: Any) -> Any:
    """Convert the leaves of a batch to arrays; what is on a device stays there.

    Args:
        name: The name of the problem, for errors.
        batch: A pytree of arrays and numbers.

    Returns:
        The pytree of JAX's and NumPy's arrays.

    Raises:
        ValueError: If a leaf is neither an array nor a number.
    """
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, jax.Array) else _array(name, leaf), batch
    )


def is_numeric(array: np.ndarray) -> bool:
    """Say whether an array holds numbers or truth values, bfloat16 included."""
    return bool(
        jnp.issubdtype(array.dtype, np.number) or jnp.issubdtype(array.dtype, np.bool_)
    )


def _gather(name: str, iterator: Iterator[Any] | None, lead: tuple[int, ...]) -> Any:
    """Fill one array per leaf, of shape `[*lead, ...]`, with the next batches."""
    if iterator is None:
        return None
    if not isinstance(iterator, Iterator):
        raise TypeError(
            f"data of {name!r} must be an iterator, got {type(iterator).__name__}, "
            f"which would start anew at every call: pass iter(...) or "
            f"itertools.cycle(...) once, and keep it."
        )
    count = math.prod(lead)
    first, structure, stacked = [], None, []
    for position in range(count):
        leaves, found = jax.tree.flatten(_next(name, iterator, position, count))
        arrays = [_array(name, leaf) for leaf in leaves]
        if position == 0:
            first, structure = arrays, found
            stacked = [np.empty((count, *leaf.shape), leaf.dtype) for leaf in arrays]
        _check_alike(name, position, (structure, first), (found, arrays))
        for target, array in zip(stacked, arrays, strict=True):
            target[position] = array
    shaped = [target.reshape(*lead, *target.shape[1:]) for target in stacked]
    return jax.tree.unflatten(structure, shaped)


def _next(name: str, iterator: Iterator[Any], position: int, count: int) -> Any:
    try:
        return next(iterator)
    except StopIteration:
        raise ValueError(
            f"data of {name!r} ran out after {position} of the {count} batches that "
            f"are needed now: pass iterators that do not end, e.g. "
            f"itertools.cycle(...)."
        ) from None


def _array(name: str, leaf: Any) -> np.ndarray:
    """Convert a leaf without copying it, where it allows that."""
    problem = f"a batch of {name!r} has a leaf of type {type(leaf).__name__}"
    remedy = "Leaves must be arrays or numbers, in dicts, lists or tuples."
    try:
        array = np.asarray(leaf)
    except Exception as error:
        raise ValueError(f"{problem}: NumPy says: {error}. {remedy}") from error
    if not is_numeric(array):
        raise ValueError(f"{problem} and dtype {array.dtype}. {remedy}")
    return array


def _check_alike(name: str, position: int, expected: Any, found: Any) -> None:
    """Raise an error unless two pairs (structure, arrays) could be stacked."""
    (structure, first), (other, arrays) = expected, found
    if other != structure:
        raise ValueError(
            f"batch {position + 1} of {name!r} has the structure {other}, but the "
            f"first one of this cycle has {structure}: all batches of a cycle need one."
        )
    for one, array in zip(first, arrays, strict=True):
        if (one.shape, one.dtype) != (array.shape, array.dtype):
            raise ValueError(
                f"batch {position + 1} of {name!r} has a leaf {array.dtype}"
                f"{list(array.shape)}, but in the first one of this cycle it is "
                f"{one.dtype}{list(one.shape)}: all batches of a cycle need one shape "
                f"and dtype. Drop a short last batch (DataLoader: drop_last=True)."
            )
