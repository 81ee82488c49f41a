"""Trees of arrays as named leaves, and leaves as one run of bytes with checksums."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlox._utils.types import PyTree

Arrays = dict[str, Any]
BYTES, NOTES = "bytes", "metadata"
"""The names of the files that hold them, and what is noted of them."""


class Leaf(NamedTuple):
    """What is noted of an array, in the order of the bytes.

    Attributes:
        dtype: Its name.
        shape: Its shape.
        checksum: Of its bytes; None if no process has all of it, and it is kept apart.
    """

    dtype: str
    shape: list[int]
    checksum: int | None

    @property
    def size(self) -> int:
        """Its bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * jnp.dtype(self.dtype).itemsize


class Packed(NamedTuple):
    """Arrays that can be written.

    Attributes:
        leaves: What to note of each, by name and path.
        data: The bytes of all that this process has whole, one after the other.
        sharded: The others, as they are.
    """

    leaves: dict[str, Leaf]
    data: np.ndarray
    sharded: Arrays


def flattened(trees: Mapping[str, PyTree]) -> Arrays:
    """Return all leaves by name and path; keys of random numbers as their data."""
    return {
        f"{name}|{jax.tree_util.keystr(path)}": _plain(leaf)
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def packed(arrays: Mapping[str, Any]) -> Packed:
    """Copy arrays into one buffer: this is the copy that a donated state needs."""
    sharded = {path: array for path, array in arrays.items() if _is_sharded(array)}
    whole = {path: array for path, array in arrays.items() if path not in sharded}
    data = np.empty(sum(array.nbytes for array in whole.values()), np.uint8)
    leaves, begin = {}, 0
    for path, array in arrays.items():
        dtype, shape = str(array.dtype), list(array.shape)
        checksum = None
        if path in whole:
            part = data[begin : begin + array.nbytes]
            np.copyto(part.view(array.dtype).reshape(array.shape), np.asarray(array))
            checksum, begin = zlib.crc32(part.data), begin + array.nbytes
        leaves[path] = Leaf(dtype, shape, checksum)
    return Packed(leaves, data, sharded)


def unpacked(leaves: Mapping[str, Leaf], data: np.ndarray) -> Arrays:
    """Return the arrays that lie in a buffer, as views of it.

    Args:
        leaves: What was noted of them.
        data: The bytes.

    Returns:
        The arrays, without those that are kept apart.

    Raises:
        ValueError: If the bytes are not those that were saved.
    """
    expected = sum(leaf.size for leaf in leaves.values() if leaf.checksum is not None)
    if expected != data.size:
        raise ValueError(f"there are {data.size} bytes of arrays instead of {expected}")
    arrays = {}
    for path, leaf, part in _parts(leaves, data):
        if leaf.checksum != zlib.crc32(part.data):
            raise ValueError(f"the numbers of {path} are not those saved")
        arrays[path] = part.view(jnp.dtype(leaf.dtype)).reshape(leaf.shape)
    return arrays


def owned(array: Any) -> Any:
    """Copy what is a view, so that the buffer that it lies in can be released."""
    return array if isinstance(array, jax.Array) else np.array(array)


def filled(name: str, template: PyTree, arrays: Mapping[str, Any]) -> PyTree:
    """Return a tree like a template, placed like it, of arrays that were read.

    Args:
        name: The name under which the tree was saved.
        template: A tree of the same structure, shapes and dtypes.
        arrays: What was read, by name and path.

    Returns:
        The tree.
    """

    def leaf(path: Any, like: Any) -> Any:
        read = owned(arrays[f"{name}|{jax.tree_util.keystr(path)}"])
        array = _placed(read, _plain(like))
        if _is_key(like):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
        return array

    return jax.tree_util.tree_map_with_path(leaf, template)


def _parts(
    leaves: Mapping[str, Leaf], data: np.ndarray
) -> Iterator[tuple[str, Leaf, np.ndarray]]:
    """Cut the bytes of each leaf out of all."""
    begin = 0
    for path, leaf in leaves.items():
        if leaf.checksum is not None:
            yield path, leaf, data[begin : begin + leaf.size]
            begin += leaf.size


def _plain(leaf: Any) -> Any:
    """Return a leaf as an array, without copying one."""
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _placed(array: Any, like: Any) -> Any:
    """Put an array where another one is; committed to its place only if that one is."""
    if isinstance(array, jax.Array) or not isinstance(like, jax.Array):
        return array
    if not like.committed:
        return jnp.asarray(array)
    return jax.device_put(array, like.sharding)


def _is_sharded(array: Any) -> bool:
    """Say whether no process has all of an array."""
    if not isinstance(array, jax.Array):
        return False
    return not (array.is_fully_addressable or array.is_fully_replicated)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )
