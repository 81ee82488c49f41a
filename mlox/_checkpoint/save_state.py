"""Save the state of a loop of the user's own."""

from __future__ import annotations

import contextlib
import os
import pathlib

import jax

from mlox._checkpoint.folder import STATE, CheckpointFolder
from mlox._checkpoint.options import Checkpoint, check_place, check_save
from mlox._checkpoint.save import write
from mlox._sharding.multihost import is_on_any_process, on_primary
from mlox._utils.types import PyTree


def save(
    directory: str | os.PathLike[str], state: PyTree, *, cycle: int
) -> pathlib.Path:
    """Save a state in a loop of one's own, for `mlox.restore`.

    The format is that of the checkpoints of a run: Orbax's, with checksums. The folder
    is written under another name and renamed when it is complete, so that
    `mlox.restore` finds the save before if the process is killed meanwhile. Nothing is
    deleted but what a killed save of this cycle has left unfinished. Where there are
    several processes, all call this function.

    Args:
        directory: A folder, which is created if it does not exist. It must not be that
            of a run, which deletes older checkpoints.
        state: The state, {name: Problem}, or any pytree of arrays.
        cycle: The number of finished cycles, under which `mlox.restore` finds it.

    Returns:
        The folder of this save, which is complete.

    Raises:
        TypeError: If an argument is of a wrong kind.
        ValueError: If the state has no arrays or was donated, `cycle` is negative, or
            the folder is that of a run.
        FileExistsError: If there is something of this cycle.
        NotADirectoryError: If a file is in the way.

    Example:
        >>> import tempfile, jax.numpy as jnp, mlox, optax
        >>> problem = mlox.Problem.create(
        ...     name="x", params=jnp.ones(()), tx=optax.sgd(0.25),
        ...     loss_fn=lambda params, batch, ctx: params**2)
        >>> engine = mlox.Engine([problem])
        >>> state, step = engine.init(), engine.compile()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for cycle in range(1, 5):
        ...         state, metrics = step(state, {"x": None})
        ...         if cycle % 2 == 0:
        ...             path = mlox.save(folder, state, cycle=cycle)
        ...     last = mlox.restore(folder, engine.init())
        ...     before = mlox.restore(folder, engine.init(), cycle=2)
        >>> path.name, float(last["x"].params), float(before["x"].params)
        ('cycle_4', 0.0625, 0.25)
    """
    from mlox._checkpoint import orbax as _orbax

    check_save(state, cycle)
    folder = CheckpointFolder(Checkpoint(directory).path)
    check_place("save: directory", folder.path)
    folder.check_format()
    path = folder.locate(cycle)
    if is_on_any_process(_holds_a_run(folder)):
        raise ValueError(
            f"save: {str(folder.parent)!r} holds the checkpoints of a run, which "
            "deletes older ones. Choose another directory."
        )
    on_primary(jax.process_count() > 1, lambda: folder.remove_unfinished(cycle))
    if is_on_any_process(folder.is_taken(cycle)):
        raise FileExistsError(
            f"save: {str(path)!r} exists; expected a cycle that is not saved yet. "
            "Nothing is overwritten: move it away, or choose another directory."
        )
    notes = {"scalars": {}, "best": [None, "min"], "engine": None, "run": {}}
    with contextlib.closing(_orbax.open_checkpointer()) as checkpointer:
        write(checkpointer, folder, int(cycle), {STATE: state}, notes)
        checkpointer.wait_until_finished()
    return path


def _holds_a_run(folder: CheckpointFolder) -> bool:
    """Return whether a checkpoint whose notes can be read is of a run."""
    notes = folder.read_all_notes(lambda _: None).values()
    return any(note["engine"] is not None for note in notes)
