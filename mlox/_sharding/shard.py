"""Place states, and their batches, on many devices by rules."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlox._sharding.layout import check_mesh, split_batches, with_auto_axes
from mlox._sharding.partition_rules import (
    HasTasks,
    Leaf,
    Rules,
    build_rule,
    check_spec,
    list_leaves,
)
from mlox._utils.types import Batches, State

Problem = TypeVar("Problem", bound=HasTasks)


class Step(Protocol):
    """The step of an engine, which checks its arguments."""

    def check(self, state: Any) -> None:
        """Raise if the engine was not built for the state."""
        ...

    def check_batches(self, state: State, batches: Batches) -> None:
        """Raise if batches do not fit the schedule, or the problems of the state."""
        ...


class Engine(Protocol):
    """The part of an engine that is used here; `mlox.Engine` has it."""

    @property
    def traced(self) -> Step:
        """The step."""
        ...

    @property
    def problems(self) -> Sequence[Any]:
        """The problems of the engine."""
        ...


def shard(
    engine: Engine,
    state: Mapping[str, Problem],
    mesh: Mesh,
    rules: Rules = "replicated",
) -> dict[str, Problem]:
    """Place a state on the devices of a mesh.

    `engine.run` and `engine.step` (under `jit`, with batches of `mlox.shard_batches`)
    then run on that mesh. Each process passes its own share of the batches to `run`.
    XLA partitions the step and adds the communication; the numbers are those of one
    device, up to rounding.

    The moments of an optimizer are placed like their parameters. Keys and counters are
    replicated, and so are leaves that no rule matches.

    Args:
        engine: The engine of the state.
        state: {name: Problem}, the same on every process. Arrays that are already on
            the mesh are moved within it, so a state that exceeds one device can be
            created there: by `jax.jit(init, out_shardings=...)` before
            `mlox.Problem.create`.
        mesh: The devices, e.g. from `jax.make_mesh`. The batches are split over its
            axis "data", or over its first axis if there is none of this name.
        rules: "replicated": every device has the whole state (data parallelism). The
            arrays of a problem with tasks are split by tasks, like its batches, if
            their number is a multiple of the size of the data axis.

            "fsdp": every leaf of 1024 numbers or more is split over the data axis,
            along its largest dimension that is a multiple of the axis's size. Memory
            for parameters and optimizers falls with the number of devices. Tasks are
            split as with "replicated".

            A table of (pattern, PartitionSpec): a parameter is split by the first
            pattern that `re.search` finds in "problem/path/to/leaf". The path of
            mutable state is "problem/model_state/path".

            Rules of Flax, (logical name, mesh axis or None), for parameters whose axes
            have names from `flax.linen.with_logical_partitioning`. Pass the variables
            as `init` returns them, without unboxing. The axis of tasks is called
            "tasks": split it by a rule ("tasks", mesh axis).

    Returns:
        The state on the mesh.

    Raises:
        TypeError: If `mesh` or `rules` has a wrong type.
        ValueError: If the state is not that of the engine, or differs between
            processes; if a pattern, or every name, matches no leaf; or if a leaf cannot
            be split by its rule.

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
    engine.traced.check(state)
    check_mesh(mesh)
    mesh = with_auto_axes(mesh)
    # JAX flattens dicts in the order of their keys.
    leaves = [leaf for name in sorted(state) for leaf in list_leaves(name, state)]
    rule = build_rule(rules, mesh, leaves)
    shardings = []
    for leaf in leaves:
        spec = rule(leaf)
        check_spec(leaf, spec, mesh)
        shardings.append(NamedSharding(mesh, spec))
    arrays, structure = jax.tree.flatten(dict(state))
    if mesh.is_multi_process:
        _check_equal(leaves, arrays)
    return jax.tree.unflatten(structure, list(map(_place, arrays, shardings)))


def shard_batches(engine: Engine, batches: Batches, mesh: Mesh) -> Any:
    """Split the batches of a cycle over the data axis of a mesh.

    Use it in your own loop; `engine.run` calls it for a state of `mlox.shard`.

    Args:
        engine: The engine.
        batches: As for `engine.step`, e.g. from `engine.stack`: the arrays
            [steps, examples, ...] of this process. The batch of the whole job is the
            concatenation over the processes, in the order of their devices. A leaf
            without an axis of examples is replicated, and must be the same on every
            process.
        mesh: The mesh of the state. The batches are split over its axis "data", or over
            its first axis if there is none of this name.

    Returns:
        Batches for `engine.step`.

    Raises:
        ValueError: If the batches do not fit the engine, or cannot be split evenly.

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
    problems = {problem.name: problem for problem in engine.problems}
    engine.traced.check_batches(problems, batches)
    return split_batches(batches, mesh, axis=1)


def _check_equal(leaves: Sequence[Leaf], arrays: Sequence[Any]) -> None:
    """Raise ValueError if the state differs between processes."""
    from jax.experimental import multihost_utils

    local = [
        (leaf, _to_numpy(array))
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


def _to_numpy(array: jax.Array) -> np.ndarray:
    return np.asarray(optax.tree.unwrap_random_key_data(array))


def _place(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Return an array on a mesh."""
    if sharding.is_fully_addressable or not array.is_fully_addressable:
        return jax.device_put(array, sharding)
    # The mesh spans several processes, and each of them has the whole array.
    numbers = _to_numpy(array)
    if not jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.make_array_from_callback(array.shape, sharding, numbers.__getitem__)
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    data = jax.make_array_from_callback(numbers.shape, whole, numbers.__getitem__)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
