"""Layouts: how a state is placed on a mesh, and batches split over it.

A step, a dispatch and a run keep the placement of the arrays that they are given, and
XLA's partitioner does the rest.
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

    def constrain(self, state: PyTree) -> PyTree:
        """Constrain a traced state to this layout.

        Without it XLA chooses where the results of a step are placed: the next step
        would get another layout, and compile again.
        """
        shardings = jax.tree.unflatten(jax.tree.structure(state), self.shardings)
        return jax.lax.with_sharding_constraint(state, shardings)

    def replicate(self, tree: PyTree) -> PyTree:
        """Constrain a traced tree to be whole on every device."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return jax.lax.with_sharding_constraint(tree, everywhere)

    @property
    def is_multi_process(self) -> bool:
        """Whether some of its devices belong to other processes."""
        return self.mesh.is_multi_process

    @property
    def is_primary(self) -> bool:
        """Whether this process prints, and writes logs."""
        return not self.is_multi_process or jax.process_index() == 0


def layout_of(state: PyTree) -> Layout | None:
    """Return the layout of a state; None if it is on no mesh.

    Leaves that are not on the mesh are replicated in the layout.
    """
    found = [
        x.sharding if isinstance(x, jax.Array) else None for x in jax.tree.leaves(state)
    ]
    named = [x for x in found if isinstance(x, NamedSharding)]
    meshes = [x.mesh for x in named if isinstance(x.mesh, Mesh)]
    if not meshes:
        return None
    mesh, whole = with_auto_axes(meshes[0]), PartitionSpec()
    specs = [x.spec if isinstance(x, NamedSharding) else whole for x in found]
    return Layout(mesh, tuple(NamedSharding(mesh, spec) for spec in specs))


def check_placement(layout: Layout | None, saves: bool) -> None:
    """Raise ValueError if a state is not on a mesh of all processes, but should be.

    Args:
        layout: The layout of the state.
        saves: Whether the run saves checkpoints.
    """
    count = jax.process_count()
    if count == 1:
        return
    if layout is None:
        raise ValueError(
            f"`state` is on no mesh, but this job has {count} processes, each of which "
            "would train alone. Place it with mlox.shard(engine, state, mesh), or, if "
            "it should train alone, on a mesh of jax.local_devices()."
        )
    if saves and not layout.is_multi_process:
        raise ValueError(
            "`checkpoint` is written by all processes together, but `state` is on a "
            f"mesh of one of {count}. Place it on a mesh of jax.devices(), or start "
            "programs without jax.distributed."
        )


def check_mesh(mesh: Any) -> None:
    """Raise if a value is not a mesh, or has the devices of some processes only.

    Raises:
        TypeError: If it is not a mesh.
        ValueError: If it lacks some of the processes, or all devices of this one.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"shard: mesh is a {type(mesh).__name__}; expected a jax.sharding.Mesh, "
            "e.g. jax.make_mesh((len(jax.devices()),), ('data',))."
        )
    there = {device.process_index for device in mesh.devices.flat}
    index, count = jax.process_index(), jax.process_count()
    if there not in ({index}, set(range(count))):
        raise ValueError(
            f"shard: mesh has devices of the processes {sorted(there)}, and this is "
            f"process {index} of {count}; expected devices of all of them, "
            "jax.devices(), or of this one alone, jax.local_devices()."
        )


def with_auto_axes(mesh: Mesh) -> Mesh:
    """Return the mesh with automatic axes, along which XLA chooses how to split.

    The axes of `jax.make_mesh` are explicit by default: JAX then requires every
    function, including the user's losses, to specify how its results are sharded.
    """
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


def data_axis(mesh: Mesh) -> str:
    """Return the axis over which batches are split: "data", or else the first one."""
    return "data" if "data" in mesh.axis_names else mesh.axis_names[0]


def split_batches(
    batches: Mapping[str, PyTree], mesh: Mesh, axis: int
) -> dict[str, PyTree]:
    """Split batches over the data axis of a mesh.

    Args:
        batches: {name: pytree of NumPy arrays}, of this process.
        mesh: The mesh.
        axis: The axis of the examples; a leaf without it is replicated.

    Returns:
        The batches of all processes, as arrays on the mesh.

    Raises:
        ValueError: If a batch cannot be split evenly.
    """
    name = data_axis(mesh)
    mesh = with_auto_axes(mesh)
    parts = _count_local_parts(mesh, name)
    whole = NamedSharding(mesh, PartitionSpec())
    divided = NamedSharding(mesh, PartitionSpec(*[None] * axis, name))

    def place(path: Any, leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        if array.ndim <= axis:
            return jax.make_array_from_process_local_data(whole, array, array.shape)
        size = array.shape[axis]
        if size % parts or not size:
            problem, *rest = path
            where = jax.tree_util.keystr(tuple(rest))
            raise ValueError(
                f"problem {problem.key!r}: {f'leaf {where}' if where else 'the array'} "
                f"of the batches has {size} examples; expected a multiple of {parts}, "
                f"the places of this process along the mesh axis {name!r}. Use e.g. "
                f"{max(1, math.ceil(size / parts)) * parts}, or a mesh with another "
                f"size of {name!r}."
            )
        return jax.make_array_from_process_local_data(divided, array)

    return jax.tree_util.tree_map_with_path(place, dict(batches))


def _count_local_parts(mesh: Mesh, name: str) -> int:
    """Count the positions along an axis where this process has devices."""
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    mine = np.moveaxis(owners == jax.process_index(), mesh.axis_names.index(name), 0)
    return int(mine.reshape(len(mine), -1).any(axis=1).sum())
