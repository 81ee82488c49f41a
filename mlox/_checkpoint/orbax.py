"""Write and read arrays and notes in the format of Orbax.

This file is imported only when it is used: importing Orbax takes longer than the rest
of `import mlox`.
"""

from __future__ import annotations

import functools
import pathlib
import threading
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mlox._checkpoint.folder import NOTES
from mlox._checkpoint.leaves import Arrays

# Orbax has one current operation per process, not per checkpointer: saves that begin at
# the same time in several threads would wait for each other's signals.
_BEGINNING_TO_SAVE = threading.Lock()


def open_checkpointer() -> ocp.AsyncCheckpointer:
    """Return a checkpointer that writes in the background; it must be closed.

    A `CheckpointManager` would also delete folders of other programs, by their names.
    """
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())


def write(
    checkpointer: ocp.AsyncCheckpointer,
    path: pathlib.Path,
    arrays: Arrays,
    notes: Mapping[str, Any],
) -> None:
    """Begin to write a checkpoint, to a temporary folder that is renamed at the end.

    The arrays are copied before this returns.
    """
    items = {name: ocp.args.StandardSave(tree) for name, tree in _nest(arrays).items()}
    text = {NOTES: ocp.args.JsonSave(notes)}
    with _BEGINNING_TO_SAVE:
        checkpointer.save(path, args=ocp.args.Composite(**items, **text))


def read(path: pathlib.Path, targets: Mapping[str, Any]) -> Arrays:
    """Read arrays of a checkpoint by name.

    A target is None for an array on the host, or an array like the one to read, of
    which each process reads its part.
    """
    tree = {}
    for item, args in _nest({n: _restore_args(x) for n, x in targets.items()}).items():
        # Not by a checkpointer, which would wait for all processes, even if one failed.
        tree[item] = ocp.PyTreeCheckpointHandler().restore(
            epath.Path(path / item),
            args=ocp.args.PyTreeRestore(
                item=jax.tree.map(lambda _: 0, args),
                restore_args=args,
                partial_restore=True,
            ),
        )
    return {
        name: functools.reduce(lambda node, key: node[key], name.split("."), tree)
        for name in targets
    }


def _restore_args(like: jax.Array | None) -> ocp.RestoreArgs:
    if like is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(
        sharding=like.sharding, global_shape=like.shape, dtype=like.dtype
    )


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"a": {"b": x}} for {"a.b": x}."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        node = functools.reduce(
            lambda node, key: node.setdefault(key, {}), parents, tree
        )
        node[last] = value
    return tree
