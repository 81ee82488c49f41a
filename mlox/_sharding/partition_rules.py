"""Rules by which the leaves of a state are split along the axes of a mesh."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from mlox._sharding.layout import data_axis

Rules = (
    Literal["replicated", "fsdp"]
    | Sequence[tuple[str, PartitionSpec]]
    | Sequence[tuple[str, str | tuple[str, ...] | None]]
)
FSDP_MIN_SIZE = 1024
"""Leaves below this size are replicated: gathering them costs more than it saves."""

MEMORY = "memory"
"""The part of a problem that is about the answers of others, by their names."""
STACKED = ("params", "opt_state", "model_state", MEMORY)
"""The parts of a problem with tasks that have an axis of tasks."""
TASKS = "tasks"
"""The logical name of that axis, which needs no rule."""


class HasTasks(Protocol):
    """A problem as the rules see it: a pytree, whose paths begin with its fields."""

    @property
    def tasks(self) -> int | None:
        """The number of its tasks; None without tasks."""
        ...


class Leaf(NamedTuple):
    """A leaf of a state, as rules see it.

    Attributes:
        problem: The name of its problem.
        part: "params", "opt_state", or another attribute of a problem.
        path: Its path in that part.
        shape: Its shape.
        owner: The problem whose arrays it is like: its own one, but for the memory of
            an answer, which is like the parameters of that answer.
        names: The names of its axes, by Flax, with that of the axis of tasks; None if
            it has none.
        tasks: Whether its first axis is that of the tasks of its owner.
    """

    problem: str
    part: str
    path: tuple[Any, ...]
    shape: tuple[int, ...]
    owner: str
    names: tuple[str | None, ...] | None
    tasks: bool

    def __str__(self) -> str:
        """Return the text that the patterns of a table are searched in."""
        part = () if self.part == "params" else (self.part,)
        path = jax.tree_util.keystr(self.path, simple=True, separator="/")
        return "/".join((self.problem, *part, *([path] if path else [])))


Rule = Callable[[Leaf], PartitionSpec]


def list_leaves(name: str, state: Mapping[str, HasTasks]) -> Iterator[Leaf]:
    """Yield the leaves of a problem of a state in their order."""
    # Loaded here, as `import mlox` does not load Flax.
    from flax.core.meta import Partitioned

    # A box is a node with the names as static data. `jax.tree.map` over the parameters
    # puts the moments of an optimizer into boxes with the same names.
    problem = state[name]
    boxed, _ = jax.tree.flatten(problem, lambda node: isinstance(node, Partitioned))
    names = [
        node.names if isinstance(node, Partitioned) else None
        for node in boxed
        for _ in jax.tree.leaves(node)
    ]
    found = jax.tree_util.tree_leaves_with_path(problem)
    for ((part, *path), array), axes in zip(found, names, strict=True):
        owner = path[0].key if part.name == MEMORY else name
        tasks = state[owner].tasks is not None and part.name in STACKED
        axes = (TASKS, *axes) if tasks and axes is not None else axes
        shape = jnp.shape(array)
        yield Leaf(name, part.name, tuple(path), shape, owner, axes, tasks)


def build_rule(rules: Any, mesh: Mesh, leaves: Sequence[Leaf]) -> Rule:
    """Return the function from leaves to specs that the rules describe.

    Raises:
        TypeError: If the rules are not all pairs of the same kind.
        ValueError: If the rules have an unknown form, or match no leaf.
    """
    if isinstance(rules, str) and rules in ("replicated", "fsdp"):
        name = data_axis(mesh)
        min_size = FSDP_MIN_SIZE if rules == "fsdp" else math.inf
        return lambda leaf: _split_evenly(leaf, name, mesh.shape[name], min_size)
    rows = _check_rows(rules)
    specs = [isinstance(value, PartitionSpec) for _, value in rows]
    if all(specs):
        return _build_table(rows, leaves)
    if not any(specs):
        return _build_logical(rows, leaves)
    raise TypeError(
        "shard: rules mix patterns with a PartitionSpec and logical names with a mesh "
        "axis; expected one kind. Write the names as patterns of paths."
    )


def _check_rows(rules: Any) -> list[tuple[str, Any]]:
    expected = (
        "expected 'replicated', 'fsdp', a table [(pattern, PartitionSpec), ...], or "
        "rules of Flax [(logical name, mesh axis), ...]."
    )
    if isinstance(rules, str) or not isinstance(rules, Sequence) or not rules:
        raise ValueError(f"shard: rules are {rules!r}; {expected}")
    kinds = (PartitionSpec, str, tuple, type(None))
    for row in rules:
        pair = isinstance(row, Sequence) and not isinstance(row, str) and len(row) == 2
        if not pair or not isinstance(row[0], str) or not isinstance(row[1], kinds):
            raise TypeError(f"shard: the rules hold {row!r}; {expected}")
    return [(row[0], row[1]) for row in rules]


def _split_evenly(leaf: Leaf, name: str, parts: int, min_size: float) -> PartitionSpec:
    """Split a leaf along the axis of tasks, or else the largest axis that fits."""
    fits = [i for i, size in enumerate(leaf.shape) if size and size % parts == 0]
    if leaf.tasks and 0 in fits:
        return PartitionSpec(name)
    if not fits or math.prod(leaf.shape) < min_size:
        return PartitionSpec()
    axis = max(fits, key=lambda i: leaf.shape[i])
    return PartitionSpec(*[None] * axis, name)


def _build_table(rows: Sequence[tuple[str, Any]], leaves: Sequence[Leaf]) -> Rule:
    """Return a rule by paths, which places moments like their parameters."""
    patterns = [(_compile(text), spec) for text, spec in rows]
    named = [leaf for leaf in leaves if leaf.part in ("params", "model_state")]
    for pattern, _ in patterns:
        if not any(pattern.search(str(leaf)) for leaf in named):
            shown = "\n  ".join(map(str, named[:20]))
            raise ValueError(
                f"shard: the pattern {pattern.pattern!r} matches no leaf. Drop it, or "
                f"write it for one of these, which `re.search` goes through:\n  {shown}"
            )

    def rule(leaf: Leaf) -> PartitionSpec:
        like_parameters = leaf.part in ("opt_state", MEMORY)
        owner = _find_parameter(leaf, leaves) if like_parameters else leaf
        if owner not in named:
            return PartitionSpec()
        found = (spec for pattern, spec in patterns if pattern.search(str(owner)))
        return next(found, PartitionSpec())

    return rule


def _compile(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(
            f"shard: the pattern {text!r} is not a regular expression: {error}. Escape "
            "special characters with re.escape."
        ) from error


def _find_parameter(leaf: Leaf, leaves: Sequence[Leaf]) -> Leaf | None:
    """Return the parameter of a moment, or of what is remembered of an answer.

    It has the same shape, and the end of the path.
    """
    owners = [
        other
        for other in leaves
        if (other.problem, other.part) == (leaf.owner, "params")
        and other.shape == leaf.shape
        and leaf.path[len(leaf.path) - len(other.path) :] == other.path
    ]
    return max(owners, key=lambda other: len(other.path), default=None)


def _build_logical(rows: Sequence[tuple[str, Any]], leaves: Sequence[Leaf]) -> Rule:
    """Return a rule by the names of axes, which Flax translates."""
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
    for name in sorted(set(used) - known - {TASKS}):
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
    """Raise ValueError if a leaf cannot be split by a spec."""
    axes = [() if e is None else e if isinstance(e, tuple) else (e,) for e in spec]
    used = [name for names in axes for name in names]
    unknown = [name for name in used if name not in mesh.axis_names]
    twice = [name for name in used if used.count(name) > 1]
    if len(spec) > len(leaf.shape):
        wrong = (
            f"it has {len(leaf.shape)} axes. Name one mesh axis, or None, for each of "
            "them at most."
        )
    elif unknown:
        wrong = f"the mesh has no axis {unknown[0]!r}, only {list(mesh.axis_names)}."
    elif twice:
        wrong = f"{twice[0]!r} is there twice. Split one axis of a leaf by it."
    else:
        parts = [math.prod(mesh.shape[name] for name in names) for names in axes]
        uneven = [i for i, n in enumerate(parts) if leaf.shape[i] % n]
        if not uneven:
            return
        size, n = leaf.shape[uneven[0]], parts[uneven[0]]
        wrong = (
            f"its axis {uneven[0]} of {size} cannot be split evenly into {n}. Make it "
            f"a multiple of {n}, or leave it whole: None."
        )
    raise ValueError(
        f"shard: problem {leaf.problem!r}, leaf {str(leaf)!r} of shape "
        f"{list(leaf.shape)} should be split as {spec}, but {wrong}"
    )
