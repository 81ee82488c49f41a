"""Convert pytrees to named arrays with checksums, and back.

The name of a leaf is its path, joined by dots, as in Orbax.
"""

from __future__ import annotations

import urllib.parse
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlox._utils.types import PyTree

Arrays = dict[str, Any]


class Leaf(NamedTuple):
    """The description of an array in the notes of a checkpoint.

    Attributes:
        dtype: The name of its dtype.
        shape: Its shape. Orbax writes no array of size zero.
        method: "crc32" of its bytes, or "sum32" if no process had all of them.
        checksum: The checksum by that method.
    """

    dtype: str
    shape: list[int]
    method: str
    checksum: int


def join_path(*keys: Any) -> str:
    """Return the name of a leaf, from the keys of its path.

    Dots and slashes within a key are quoted: Orbax would treat them as separators, and
    could confuse arrays.

    Example:
        >>> join_path("classifier", "params", "a.b")
        'classifier.params.a%2Eb'
    """
    quoted = [urllib.parse.quote(str(k), safe="").replace(".", "%2E") for k in keys]
    return ".".join(key or "%" for key in quoted)


def name_leaves(tree: PyTree) -> Arrays:
    """Return the leaves of a pytree as arrays, by name; PRNG keys as their data.

    Example:
        >>> name_leaves({"x": [1.0, {"step": 2}]})
        {'x.0': array(1.), 'x.1.step': array(2)}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): _to_array(leaf) for path, leaf in leaves}


def restore_into(template: PyTree, arrays: Mapping[str, Any]) -> PyTree:
    """Return a pytree like a template, with leaves replaced by arrays of their names.

    They are placed on the devices of the template. Other leaves are unchanged.
    """

    def restore_leaf(path: Any, like: Any) -> Any:
        name = _name(path)
        if name not in arrays:
            return like
        array = _place(arrays[name], _to_array(like))
        if _is_key(like):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
        return array

    return jax.tree_util.tree_map_with_path(restore_leaf, template)


def fetch(arrays: Arrays) -> tuple[Arrays, dict[str, Leaf]]:
    """Fetch all arrays that this process has whole, and describe all of them."""
    spread = {name: array for name, array in arrays.items() if is_spread(array)}
    fetched = {name: array for name, array in arrays.items() if name not in spread}
    host = jax.device_get(fetched)
    sums = {name: ("crc32", crc32(array)) for name, array in host.items()}
    sums |= {name: ("sum32", total) for name, total in sum32(spread).items()}
    host |= spread
    leaves = {n: Leaf(str(x.dtype), list(x.shape), *sums[n]) for n, x in host.items()}
    return host, leaves


def verify(arrays: Mapping[str, Any], leaves: Mapping[str, Leaf]) -> None:
    """Raise ValueError if an array that was read is not the one that was saved."""
    sums = sum32({n: x for n, x in arrays.items() if leaves[n].method == "sum32"})
    for name, array in arrays.items():
        found = sums[name] if name in sums else crc32(array)
        read = Leaf(str(array.dtype), list(array.shape), leaves[name].method, found)
        if read != leaves[name]:
            raise ValueError(f"the numbers of {name} are not those saved")


def is_spread(array: Any) -> bool:
    """Return whether no process has all of an array."""
    if not isinstance(array, jax.Array):
        return False
    return not (array.is_fully_addressable or array.is_fully_replicated)


def crc32(array: np.ndarray) -> int:
    """Return the CRC-32 of the bytes of an array."""
    return zlib.crc32(_bytes(array).data)


def sum32(arrays: Mapping[str, Any]) -> dict[str, int]:
    """Return a checksum of each array that does not depend on how it is split.

    It is sum_i (2i + 1) w_i mod 2^32 over the words w_i of an array, 32 bits or less.
    An odd weight has an inverse modulo 2^32: a change of any one word changes the sum.
    Integers add exactly in any order, so N processes and M processes get the same sum
    for any parts of an array, while a CRC-32 needs all bytes in one place.
    """
    words = {
        name: x if isinstance(x, jax.Array) else _bytes(x).view(_word(x.dtype))
        for name, x in arrays.items()
    }
    return {name: int(x) for name, x in jax.device_get(_sum32(words)).items()}


@jax.jit
def _sum32(arrays: Arrays) -> Arrays:
    def total(array: jax.Array) -> jax.Array:
        if jnp.iscomplexobj(array):
            array = jnp.stack([array.real, array.imag], axis=-1)
        if array.dtype == jnp.bool_:
            array = array.astype(jnp.uint8)
        words = lax.bitcast_convert_type(array, _word(array.dtype)).astype(jnp.uint32)
        index = lax.iota(jnp.uint32, words.size).reshape(words.shape)
        return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)

    return jax.tree.map(total, arrays)


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _word(dtype: Any) -> np.dtype:
    return np.dtype(f"uint{8 * min(dtype.itemsize, 4)}")


def _name(path: Any) -> str:
    return join_path(*(jax.tree_util.keystr((key,), simple=True) for key in path))


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _to_array(leaf: Any) -> Any:
    """Return a leaf as an array, without a copy of one."""
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _place(array: Any, like: Any) -> Any:
    """Put an array on the devices of another one, committed only if that one is."""
    if isinstance(array, jax.Array) or not isinstance(like, jax.Array):
        return array
    if not like.committed:
        return jnp.asarray(array)
    return jax.device_put(array, like.sharding)
