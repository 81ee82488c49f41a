"""States on many devices: which leaf is split along which axis of a mesh."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlox._checks import check_batches, check_state
from mlox._engine import Engine
from mlox._placement import automatic, check_mesh, data_axis, split
from mlox._problem import Problem

PyTree = Any
Rules = (
    Literal["replicated", "fsdp"]
    | Sequence[tuple[str, PartitionSpec]]
    | Sequence[tuple[str, str | tuple[str, ...] | None]]
)
FSDP_LEAST = 1024
"""Leaves of fewer numbers stay whole with "fsdp": what they save is less than it costs
to gather them."""


class Leaf(NamedTuple):
    """A leaf of a state, as rules see it.

    Attributes:
        problem: The name of its problem.
        part: "params", "opt_state", or another attribute of a problem.
        path: Its path in that part.
        shape: Its shape.
        names: The names of its axes, by Flax; None if it has none.
    """

    problem: str
    part: str
    path: tuple[Any, ...]
    shape: tuple[int, ...]
    names: tuple[str | None, ...] | None

    def __str__(self) -> str:
        """Write it as the patterns of a table see it."""
        part = () if self.part == "params" else (self.part,)
        path = jax.tree_util.keystr(self.path, simple=True, separator="/")
        return "/".join((self.problem, *part, *([path] if path else [])))


Rule = Callable[[Leaf], PartitionSpec]


def shard(
    engine: Engine,
    state: Mapping[str, Problem],
    mesh: Mesh,
    rules: Rules = "replicated",
) -> dict[str, Problem]:
    """Place a state on the devices of a mesh.

    From then on everything runs on that mesh: `engine.step` under `jit`, with batches
    of `mlox.shard_batches`, and `engine.run`, for which the batches of each process
    are its share. XLA partitions the step and adds the communication; the numbers are
    those of one device, up to rounding.

    An optimizer's moments are placed as the parameters that they belong to. Keys and
    counters are whole on every device, as is what no rule names.

    Args:
        engine: The engine of the state.
        state: {name: Problem}, the same on every process. What is on the mesh already
            is moved there, so that a state larger than a device can be made in place:
            by `jax.jit(init, out_shardings=...)` before `mlox.Problem.create`.
        mesh: The devices, e.g. of `jax.make_mesh`. Its data axis, the one called
            "data" or else the first, splits the batches.
        rules: "replicated": everything whole on every device; data parallelism.

            "fsdp": every leaf of 1024 numbers or more is split along the data axis, in
            its largest dimension that this divides. Memory for parameters and
            optimizers falls with the number of devices.

            A table of (pattern, PartitionSpec): the first pattern that is found in
            "problem/path/to/leaf" says how a parameter is split. What else a problem
            holds is called "problem/model_state/path".

            Rules of Flax, (logical name, mesh axis or None), for parameters whose axes
            have names by `flax.linen.with_logical_partitioning`. Pass the variables as
            `init` returns them, not unboxed.

    Returns:
        The state, placed.

    Raises:
        TypeError: If mesh or rules are of another kind.
        ValueError: If the state is not the engine's, or differs between processes; if
            a pattern or all names match nothing; or if a leaf cannot be split as its
            rule says.

    Example:
        >>> import jax, jax.numpy as jnp, mlox, optax
        >>> problem = mlox.Problem.create(
        ...     name="fit", params={"w": jnp.ones((64, 64))}, tx=optax.adam(0.1),
        ...     loss_fn=lambda params, batch, ctx: jnp.mean((batch @ params["w"])**2))
        >>> engine = mlox.Engine([problem])
        >>> mesh = jax.make_mesh((len(jax.devices()),), ("data",))
        >>> state = mlox.shard(engine, engine.init(), mesh, "fsdp")
        >>> tuple(state["fit"].params["w"].sharding.spec)
        ('data',)
        >>> data = {"fit": [jnp.ones((8 * len(jax.devices()), 64))]}
        >>> state, _ = engine.run(state, data, train_iters=2, loggers=())
        >>> tuple(state["fit"].opt_state[0].mu["w"].sharding.spec)
        ('data',)
    """
    check_state(engine.cycle.plan, state)
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"shard: mesh is a {type(mesh).__name__}; expected a jax.sharding.Mesh, "
            "e.g. jax.make_mesh((len(jax.devices()),), ('data',))."
        )
    check_mesh(mesh)
    mesh = automatic(mesh)
    # JAX flattens dicts in the order of their keys.
    leaves = [leaf for name in sorted(state) for leaf in _leaves(name, state[name])]
    rule = _rule(rules, mesh, leaves)
    shardings = []
    for leaf in leaves:
        spec = rule(leaf)
        _check_spec(leaf, spec, mesh)
        shardings.append(NamedSharding(mesh, spec))
    arrays, structure = jax.tree.flatten(dict(state))
    if mesh.is_multi_process:
        _check_alike(leaves, arrays)
    return jax.tree.unflatten(structure, list(map(_placed, arrays, shardings)))


def shard_batches(engine: Engine, batches: Mapping[str, PyTree], mesh: Mesh) -> Any:
    """Split the batches of a cycle over the data axis of a mesh.

    For loops of one's own; `engine.run` does it by itself for a state of `mlox.shard`.

    Args:
        engine: The engine.
        batches: As for `engine.step`, e.g. of `engine.stack`: arrays of the shape
            [steps, examples, ...], those of this process. Together the processes have
            the batch of the whole job, in the order of their devices. A leaf without
            an axis of examples is whole on every device, and must be the same on every
            process.
        mesh: The mesh of the state. The axis called "data" splits the batches, or else
            the first.

    Returns:
        Batches for `engine.step`.

    Raises:
        ValueError: If they do not fit, or cannot be split evenly.

    Example:
        >>> import jax, jax.numpy as jnp, mlox, optax
        >>> problem = mlox.Problem.create(
        ...     name="fit", params=jnp.ones(()), tx=optax.sgd(0.1),
        ...     loss_fn=lambda params, batch, ctx: jnp.mean((params - batch)**2))
        >>> engine = mlox.Engine([problem])
        >>> mesh = jax.make_mesh((len(jax.devices()),), ("data",))
        >>> state = mlox.shard(engine, engine.init(), mesh)
        >>> one = jnp.zeros(4 * len(jax.devices()))
        >>> batches = mlox.shard_batches(
        ...     engine, engine.stack({"fit": iter([one])}), mesh)
        >>> tuple(batches["fit"].sharding.spec)
        (None, 'data')
        >>> state, metrics = engine.compile()(state, batches)
        >>> float(metrics["fit/loss"][0])
        1.0
    """
    expected = {problem.name: problem for problem in engine.problems}
    check_batches(engine.graph, expected, batches)
    return split(batches, mesh, axis=1)


def _leaves(name: str, problem: Problem) -> Iterator[Leaf]:
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
        yield Leaf(name, part.name, tuple(path), jnp.shape(array), axes)


def _rule(rules: Any, mesh: Mesh, leaves: Sequence[Leaf]) -> Rule:
    """Make a function of a leaf of what the user wrote."""
    if isinstance(rules, str) and rules == "replicated":
        return lambda leaf: PartitionSpec()
    if isinstance(rules, str) and rules == "fsdp":
        name = data_axis(mesh)
        return lambda leaf: _largest(leaf.shape, name, mesh.shape[name])
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


def _largest(shape: tuple[int, ...], name: str, parts: int) -> PartitionSpec:
    """Split the largest dimension that can be split evenly, of a leaf worth it."""
    fits = [i for i, size in enumerate(shape) if size and size % parts == 0]
    if not fits or math.prod(shape) < FSDP_LEAST:
        return PartitionSpec()
    axis = max(fits, key=lambda i: shape[i])
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


def _check_spec(leaf: Leaf, spec: PartitionSpec, mesh: Mesh) -> None:
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


def _check_alike(leaves: Sequence[Leaf], arrays: Sequence[Any]) -> None:
    """Refuse a state of which the processes have made different copies."""
    from jax.experimental import multihost_utils

    local = [
        (leaf, _numbers(array))
        for leaf, array in zip(leaves, arrays, strict=True)
        if array.is_fully_addressable
    ]
    sums = [zlib.crc32(np.ascontiguousarray(array).tobytes()) for _, array in local]
    if not sums:
        return
    found = multihost_utils.process_allgather(np.array(sums, np.uint32))
    different = (found != found[0]).any(axis=0)
    if different.any():
        leaf = local[int(different.argmax())][0]
        raise ValueError(
            f"shard: {str(leaf)!r} differs between processes. Make the same state on "
            "each of them: from the same seed, or from one file."
        )


def _numbers(array: jax.Array) -> np.ndarray:
    keys = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if keys else array)


def _placed(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Put an array on a mesh."""
    if sharding.is_fully_addressable or not array.is_fully_addressable:
        return jax.device_put(array, sharding)
    # On devices of several processes, of which each has all of the array.
    keys = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    numbers = _numbers(array)
    if keys:
        whole = NamedSharding(sharding.mesh, PartitionSpec())
        data = jax.make_array_from_callback(numbers.shape, whole, numbers.__getitem__)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    return jax.make_array_from_callback(array.shape, sharding, numbers.__getitem__)
