"""Rules by which the leaves of a state are split along the axes of a mesh."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from mlox._problem.problem import Problem
from mlox._sharding.layout import data_axis

Rules = (
    Literal["replicated", "fsdp"]
    | Sequence[tuple[str, PartitionSpec]]
    | Sequence[tuple[str, str | tuple[str, ...] | None]]
)
FSDP_LEAST = 1024
"""Leaves of fewer numbers stay whole with "fsdp": what they save is less than it costs
to gather them."""


STACKED = ("params", "opt_state", "model_state")
"""What a problem with tasks holds for each of them."""


class Leaf(NamedTuple):
    """A leaf of a state, as rules see it.

    Attributes:
        problem: The name of its problem.
        part: "params", "opt_state", or another attribute of a problem.
        path: Its path in that part.
        shape: Its shape.
        names: The names of its axes, by Flax; None if it has none.
        tasks: Whether its first axis is that of the tasks of its problem.
    """

    problem: str
    part: str
    path: tuple[Any, ...]
    shape: tuple[int, ...]
    names: tuple[str | None, ...] | None
    tasks: bool

    def __str__(self) -> str:
        """Write it as the patterns of a table see it."""
        part = () if self.part == "params" else (self.part,)
        path = jax.tree_util.keystr(self.path, simple=True, separator="/")
        return "/".join((self.problem, *part, *([path] if path else [])))


Rule = Callable[[Leaf], PartitionSpec]


def leaves_of(name: str, problem: Problem) -> Iterator[Leaf]:
    """Yield the leaves of a problem in their order."""
    # Loaded here, as `import mlox` does not load Flax.
    from flax.core.meta import Partitioned

    # A box is a node with the names as static data. An optimizer's moments are in boxes
    # like those of the parameters, of which it has made them by `jax.tree.map`.
    boxed, _ = jax.tree.flatten(problem, lambda node: isinstance(node, Partitioned))
    names = [
        node.names if isinstance(node, Partitioned) else None
        for node in boxed
        for _ in jax.tree.leaves(node)
    ]
    found = jax.tree_util.tree_leaves_with_path(problem)
    for ((part, *path), array), axes in zip(found, names, strict=True):
        tasks = problem.tasks is not None and part.name in STACKED
        yield Leaf(name, part.name, tuple(path), jnp.shape(array), axes, tasks)


def rule_of(rules: Any, mesh: Mesh, leaves: Sequence[Leaf]) -> Rule:
    """Make a function of a leaf of what the user wrote."""
    if isinstance(rules, str) and rules in ("replicated", "fsdp"):
        name = data_axis(mesh)
        least = FSDP_LEAST if rules == "fsdp" else math.inf
        return lambda leaf: _even(leaf, name, mesh.shape[name], least)
    rows = _rows(rules)
    if all(isinstance(value, PartitionSpec) for _, value in rows):
        return _table(rows, leaves)
    if any(isinstance(value, PartitionSpec) for _, value in rows):
        raise TypeError(
            "shard: rules mix patterns with a PartitionSpec and logical names with a "
            "mesh axis; expected one kind. Write the names as patterns of paths."
        )
    return _logical(rows, leaves)


def _rows(rules: Any) -> list[tuple[str, Any]]:
    """Check that rules are a sequence of pairs."""
    expected = (
        "expected 'replicated', 'fsdp', a table [(pattern, PartitionSpec), ...], or "
        "rules of Flax [(logical name, mesh axis), ...]."
    )
    if isinstance(rules, str) or not isinstance(rules, Sequence) or not rules:
        raise ValueError(f"shard: rules are {rules!r}; {expected}")
    kinds = PartitionSpec | str | tuple | None
    for row in rules:
        pair = isinstance(row, Sequence) and not isinstance(row, str) and len(row) == 2
        if not pair or not isinstance(row[0], str) or not isinstance(row[1], kinds):
            raise TypeError(f"shard: the rules hold {row!r}; {expected}")
    return [(row[0], row[1]) for row in rules]


def _even(leaf: Leaf, name: str, parts: int, least: float) -> PartitionSpec:
    """Split a leaf by tasks, as their batches are; else, if it is worth it, evenly."""
    fits = [i for i, size in enumerate(leaf.shape) if size and size % parts == 0]
    if leaf.tasks and 0 in fits:
        return PartitionSpec(name)
    if not fits or math.prod(leaf.shape) < least:
        return PartitionSpec()
    axis = max(fits, key=lambda i: leaf.shape[i])
    return PartitionSpec(*[None] * axis, name)


def _table(rows: Sequence[tuple[str, Any]], leaves: Sequence[Leaf]) -> Rule:
    """Look leaves up by their paths; moments are placed as their parameters are."""
    patterns = [(_pattern(text), spec) for text, spec in rows]
    own = [leaf for leaf in leaves if leaf.part in ("params", "model_state")]
    for pattern, _ in patterns:
        if not any(pattern.search(str(leaf)) for leaf in own):
            shown = "\n  ".join(map(str, own[:20]))
            raise ValueError(
                f"shard: the pattern {pattern.pattern!r} matches no leaf. Drop it, or "
                f"write it for one of these, which `re.search` goes through:\n  {shown}"
            )

    def rule(leaf: Leaf) -> PartitionSpec:
        named = _parameter_of(leaf, leaves) if leaf.part == "opt_state" else leaf
        if named is None or named.part not in ("params", "model_state"):
            return PartitionSpec()
        found = (spec for pattern, spec in patterns if pattern.search(str(named)))
        return next(found, PartitionSpec())

    return rule


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(
            f"shard: the pattern {text!r} is no regular expression ({error}). Escape "
            "its special signs with re.escape."
        ) from error


def _parameter_of(leaf: Leaf, leaves: Sequence[Leaf]) -> Leaf | None:
    """Find the parameter of a moment: of its shape, and with the end of its path."""
    owners = [
        other
        for other in leaves
        if (other.problem, other.part) == (leaf.problem, "params")
        and other.shape == leaf.shape
        and leaf.path[len(leaf.path) - len(other.path) :] == other.path
    ]
    return max(owners, key=lambda other: len(other.path), default=None)


def _logical(rows: Sequence[tuple[str, Any]], leaves: Sequence[Leaf]) -> Rule:
    """Translate the names of axes as Flax does."""
    from flax.linen.spmd import logical_to_mesh_axes

    named = [(name, leaf) for leaf in leaves for name in leaf.names or ()]
    used = {name: leaf for name, leaf in reversed(named) if name is not None}
    known = {name for name, _ in rows}
    if not used:
        raise ValueError(
            f"shard: the rules are for the logical names {sorted(known)}, but no leaf "
            "has names. Give them by flax.linen.with_logical_partitioning and pass the "
            "variables as `init` returns them, or use a table of (pattern, "
            "PartitionSpec)."
        )
    for name in sorted(set(used) - known):
        raise ValueError(
            f"shard: no rule for the logical name {name!r} of "
            f"{str(used[name])!r}; there are rules for {sorted(known)}. Add "
            f"({name!r}, mesh axis), or ({name!r}, None) to leave it whole."
        )

    def rule(leaf: Leaf) -> PartitionSpec:
        # Some optimizers keep sums over axes, in boxes that name all axes.
        if leaf.names is None or len(leaf.names) != len(leaf.shape):
            return PartitionSpec()
        return logical_to_mesh_axes(leaf.names, rows) or PartitionSpec()

    return rule


def check_spec(leaf: Leaf, spec: PartitionSpec, mesh: Mesh) -> None:
    """Refuse a way to split a leaf that it or the mesh does not have."""
    what = f"shard: problem {leaf.problem!r}, leaf {str(leaf)!r} of the shape"
    what = f"{what} {list(leaf.shape)} should be split as {spec}, but"
    if len(spec) > len(leaf.shape):
        raise ValueError(
            f"{what} it has {len(leaf.shape)} axes. Name one mesh axis, or None, for "
            "each of them at most."
        )
    axes = [() if e is None else e if isinstance(e, tuple) else (e,) for e in spec]
    for name in (name for names in axes for name in names):
        if name not in mesh.axis_names:
            raise ValueError(
                f"{what} the mesh has no axis {name!r}, only {list(mesh.axis_names)}."
            )
        if sum(names.count(name) for names in axes) > 1:
            raise ValueError(
                f"{what} {name!r} is there twice. Split one axis of a leaf by it."
            )
    for i, names in enumerate(axes):
        parts = math.prod(mesh.shape[name] for name in names)
        if leaf.shape[i] % parts:
            raise ValueError(
                f"{what} its axis {i} of {leaf.shape[i]} cannot be split evenly into "
                f"{parts}. Make it a multiple of {parts}, or leave it whole: None."
            )
