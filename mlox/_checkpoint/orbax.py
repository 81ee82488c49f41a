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
    arrays: Mapping[str, Arrays],
    notes: Mapping[str, Mapping[str, Any]],
) -> None:
    """Begin to write a checkpoint, to a temporary folder that is renamed at the end.

    Args:
        checkpointer: One that has finished its last checkpoint.
        path: The folder of the checkpoint.
        arrays: {folder in the checkpoint: {name: array}}. The arrays are copied before
            this returns.
        notes: {folder in the checkpoint: values for JSON}.
    """
    items = {name: ocp.args.StandardSave(_nest(x)) for name, x in arrays.items() if x}
    texts = {name: ocp.args.JsonSave(x) for name, x in notes.items()}
    with _BEGINNING_TO_SAVE:
        checkpointer.save(path, args=ocp.args.Composite(**items, **texts))


def read(path: pathlib.Path, targets: Mapping[str, Any]) -> Arrays:
    """Read some arrays of one folder.

    Args:
        path: The folder within a checkpoint.
        targets: By name, an array like the one to read if it is to be placed on its
            devices, each process reading its part; None for an array on the host.

    Returns:
        The arrays by name.
    """
    ask = {name: _restore_args(like) for name, like in targets.items()}
    args = ocp.args.PyTreeRestore(
        item=_nest(dict.fromkeys(targets, 0)),
        restore_args=_nest(ask),
        partial_restore=True,
    )
    # Not by a checkpointer, which would wait for all processes, even if one has failed.
    tree = ocp.PyTreeCheckpointHandler().restore(epath.Path(path), args=args)
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
