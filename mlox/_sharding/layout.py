"""Where a state lives: the layout of a run on a mesh, and batches split over it.

Everything follows from how the arrays of the state are placed: a step, a dispatch and a
run keep the layout that they find, and XLA's own partitioner does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mlox._utils.types import PyTree


@dataclass(frozen=True)
class Layout:
    """How a state is placed on a mesh: hashable, compared by value.

    Attributes:
        mesh: The mesh.
        shardings: Those of the leaves of the state, in their order.
    """

    mesh: Mesh
    shardings: tuple[NamedSharding, ...]

    def of(self, state: PyTree) -> PyTree:
        """Return the shardings as a tree like the state."""
        return jax.tree.unflatten(jax.tree.structure(state), self.shardings)

    def held(self, state: PyTree) -> PyTree:
        """Return the state, for XLA to place as it was; inside of a traced function.

        Left to itself, XLA would place what follows from sharded data as suits it: the
        next step would find another layout, and be compiled again.
        """
        return jax.lax.with_sharding_constraint(state, self.of(state))

    def whole(self, tree: PyTree) -> PyTree:
        """Return a tree, whole on every device; inside of a traced function."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return jax.lax.with_sharding_constraint(tree, everywhere)

    @property
    def spans(self) -> bool:
        """Whether some of its devices belong to other processes."""
        return self.mesh.is_multi_process

    @property
    def speaks(self) -> bool:
        """Whether this process is the one that shows and writes what all know."""
        return not self.spans or jax.process_index() == 0


def layout_of(state: PyTree) -> Layout | None:
    """Return the layout of a state; None if it is on no mesh.

    What is on no device in particular will be whole on every device.
    """
    leaves = jax.tree.leaves(state)
    placed = [x.sharding if isinstance(x, jax.Array) else None for x in leaves]
    named = [x for x in placed if isinstance(x, NamedSharding)]
    meshes = [x.mesh for x in named if isinstance(x.mesh, Mesh)]
    if not meshes:
        return None
    mesh, nowhere = automatic(meshes[0]), PartitionSpec()
    specs = [x.spec if isinstance(x, NamedSharding) else nowhere for x in placed]
    return Layout(mesh, tuple(NamedSharding(mesh, spec) for spec in specs))


def check_placed(layout: Layout | None, saves: bool) -> None:
    """Refuse a state that lives on one process of several by an oversight.

    Raises:
        ValueError: If there are several processes, and the state is on no mesh; or on
            that of one process, and is to be saved.
    """
    count = jax.process_count()
    if layout is not None and count > 1 and saves and not layout.spans:
        raise ValueError(
            "`checkpoint` is written by all processes together, but `state` is on a "
            f"mesh of one of {count}. Place it on a mesh of jax.devices(), or start "
            "programs without jax.distributed."
        )
    if layout is None and count > 1:
        raise ValueError(
            f"`state` is on no mesh, but this job has {count} processes, each of which "
            "would train by itself. Place it with mlox.shard(engine, state, mesh); if "
            "that is what you want, on a mesh of jax.local_devices()."
        )


def check_mesh(mesh: Mesh) -> None:
    """Refuse a mesh on which the processes cannot all work.

    Raises:
        ValueError: If it lacks some of the processes, or all devices of this one.
    """
    there = {device.process_index for device in mesh.devices.flat}
    every, own = set(range(jax.process_count())), {jax.process_index()}
    if there not in (every, own):
        raise ValueError(
            f"the mesh has devices of the processes {sorted(there)}, but this is "
            f"process {own.pop()} of {len(every)}: use devices of all of them, e.g. "
            "jax.devices(), or of this one alone, jax.local_devices()."
        )


def automatic(mesh: Mesh) -> Mesh:
    """Return a mesh whose axes XLA's partitioner may use as it sees fit.

    The axes that `jax.make_mesh` makes are explicit by default: JAX then asks every
    function, the user's losses too, to say how its results are sharded.
    """
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


def data_axis(mesh: Mesh) -> str:
    """Return the axis over which batches are split: "data", or else the first."""
    return "data" if "data" in mesh.axis_names else mesh.axis_names[0]


def split(batches: Mapping[str, PyTree], mesh: Mesh, axis: int) -> dict[str, PyTree]:
    """Split batches over the data axis of a mesh.

    Args:
        batches: {name: pytree of NumPy arrays}, of this process.
        mesh: The mesh.
        axis: Which of their axes holds the examples; a leaf that lacks it is whole on
            every device.

    Returns:
        The batches of all processes, as arrays on the mesh.

    Raises:
        ValueError: If a batch cannot be split evenly.
    """
    name = data_axis(mesh)
    mesh = automatic(mesh)
    spec = PartitionSpec(*[None] * axis, name)
    parts = _local_parts(mesh, name)

    def placed(problem: str, path: Any, leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        if array.ndim <= axis:
            sharding = NamedSharding(mesh, PartitionSpec())
            return jax.make_array_from_process_local_data(sharding, array, array.shape)
        if array.shape[axis] % parts or not array.shape[axis]:
            raise ValueError(_uneven(problem, path, array.shape[axis], name, parts))
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_process_local_data(sharding, array)

    return {
        problem: jax.tree_util.tree_map_with_path(
            lambda path, leaf, problem=problem: placed(problem, path, leaf), batch
        )
        for problem, batch in batches.items()
    }


def _local_parts(mesh: Mesh, name: str) -> int:
    """Count the positions along an axis where this process has devices."""
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    mine = np.moveaxis(owners == jax.process_index(), mesh.axis_names.index(name), 0)
    return int(mine.reshape(len(mine), -1).any(axis=1).sum())


def _uneven(problem: str, path: Any, size: int, name: str, parts: int) -> str:
    leaf = jax.tree_util.keystr(path)
    where = f"leaf {leaf} of the batches" if leaf else "the batches"
    fitting = max(1, math.ceil(size / parts)) * parts
    return (
        f"problem {problem!r}: {where} has {size} examples, which cannot be split "
        f"evenly over the {parts} places of this process along the mesh axis {name!r}. "
        f"Make the batch a multiple of {parts}, e.g. {fitting}; or choose a mesh "
        f"whose axis {name!r} divides it."
    )
