"""Batches of problems whose loss evaluates those of several."""

from __future__ import annotations

from collections.abc import Mapping

from mlox._utils.describe import summarize
from mlox._utils.types import PyTree


def part_of(batch: PyTree, name: str, names: tuple[str, ...], owner: str) -> PyTree:
    """Return the part of one problem in a batch that has one for each of several.

    Args:
        batch: {name: batch}, where a problem without data may be left out; None if none
            of them has data.
        name: The problem whose part it is.
        names: All of them.
        owner: The problem whose batch it is.

    Raises:
        ValueError: If the batch is something else.

    Example:
        >>> part_of({"x": 1.0, "y": 2.0}, "y", ("x", "y"), "x")
        2.0
    """
    if batch is None:
        return None
    if not isinstance(batch, Mapping) or not set(batch) <= set(names):
        expected = ", ".join(f"{n!r}: its batch" for n in names)
        series = ", ".join(f"{n}=..." for n in names)
        raise ValueError(
            f"the batch of {owner!r} is {summarize(batch)}; expected a dict "
            f"{{{expected}}}, since its loss evaluates those of {' and '.join(names)}. "
            f"Pass data={{{owner!r}: mlox.together({series})}} to run; a problem "
            "without data is left out."
        )
    return batch.get(name)


def missing_part(name: str) -> str:
    """Return how a loss gets its batch where the loss of another problem calls it."""
    return (
        f"the batch of the problem that was stepped has no part for {name!r}. Pass "
        f"data={{...: mlox.together({name}=..., ...)}} to run, or "
        f"batches[...][{name!r}] to step."
    )
