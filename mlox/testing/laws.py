"""Laws: what is claimed, how far it is off, and the likely cause."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlox._utils.describe import show_differences, summarize
from mlox._utils.types import PyTree


@contextlib.contextmanager
def law(owner: Any, name: str, cause: str) -> Generator[None]:
    """Raise AssertionError, with the name of a law, for any error within.

    Args:
        owner: The value that is checked.
        name: The law, as a statement.
        cause: What is likely to break it, and what to do.
    """
    try:
        yield
    except Exception as error:
        raise AssertionError(
            f"{summarize(owner)} breaks the law that {name}: {error} {cause}"
        ) from error


def require(holds: Any, what: str) -> None:
    """Raise AssertionError unless a condition holds."""
    if not holds:
        raise AssertionError(what)


def require_close(found: PyTree, expected: PyTree, tolerance: float) -> None:
    """Raise AssertionError unless the distance of two pytrees is relatively small."""
    x, y = _flat(found), _flat(expected)
    distance = np.linalg.norm(x - y)
    require(
        distance <= tolerance * max(np.linalg.norm(y), np.finfo(np.float32).tiny),
        f"found {_show(x)}, expected {_show(y)}: relative distance "
        f"{distance / max(np.linalg.norm(y), np.finfo(np.float32).tiny):.2g}, allowed "
        f"{tolerance:.2g}.",
    )


def require_finite(found: PyTree) -> None:
    """Raise AssertionError if a number is not finite."""
    require(np.isfinite(_flat(found)).all(), f"found {_show(_flat(found))}.")


def require_like(found: PyTree, expected: PyTree) -> None:
    """Raise AssertionError unless two pytrees have one structure, shapes and dtypes."""
    differences = show_differences(found, expected)
    require(not differences, f"{differences}.")


def require_report(report: Any) -> None:
    """Raise AssertionError unless a report is a dict of scalars."""
    require(isinstance(report, dict), f"the report is {summarize(report)}.")
    for key, value in report.items():
        require(
            isinstance(key, str) and np.shape(value) == (),
            f"the report has {key!r}: {summarize(value)}.",
        )


def require_value(owner: Any) -> None:
    """Raise unless a value can be hashed, and equals a copy of itself."""
    twin = copy.deepcopy(owner)
    require(hash(twin) == hash(owner), "a copy has another hash.")
    require(twin == owner, "a copy is not equal to it.")


def float_types() -> list[Any]:
    """Return float32, and float64 where it is enabled."""
    narrow, wide = jnp.dtype("float32"), jnp.result_type(float)
    return [narrow] if wide == narrow else [narrow, wide]


def _flat(tree: PyTree) -> np.ndarray:
    leaves = [np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def _show(flat: np.ndarray) -> str:
    return np.array2string(flat, precision=4, threshold=6, edgeitems=3)
