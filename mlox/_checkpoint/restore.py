"""Restore the state of a checkpoint, whole, or in part into another graph."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar

from mlox._checkpoint.folder import RUN, STATE, CheckpointFolder
from mlox._checkpoint.leaves import name_leaves, restore_into
from mlox._checkpoint.options import Checkpoint, check_restore, find_best
from mlox._checkpoint.read import Match, Restored, Saved, read, read_newest
from mlox._utils.describe import summarize
from mlox._utils.types import PyTree
from mlox._utils.warn import warn

StateT = TypeVar("StateT")


def restore(
    directory: str | os.PathLike[str],
    state: StateT,
    *,
    cycle: int | Literal["newest", "best"] = "newest",
    partial: Collection[str] | Mapping[str, str] | None = None,
) -> StateT:
    """Restore the state of a checkpoint, also while the run is still in progress.

    The folder is not changed.

    Args:
        directory: The `directory` of the `mlox.Checkpoint`, or of `mlox.save`.
        state: A state like the saved one, e.g. `engine.init()`, for structure, shapes,
            dtypes and devices.
        cycle: "newest" for the newest intact checkpoint, "best" for the best one by the
            `best` of the `mlox.Checkpoint`, or a number of cycles.
        partial: None for the whole state. Otherwise the names of the parts to restore:
            problems, `["classifier"]`, or parts of them, `["classifier.params"]`; or a
            dict from names in `state` to names in the checkpoint,
            `{"student.params": "teacher.params"}`. A key with a dot, "a.b", is
            written "a%2Eb". The rest of `state` is returned unchanged, and may belong
            to another graph.

    Returns:
        The saved state; with `partial`, `state` with the restored parts.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the state differs from the saved one (the first differences are
            shown), if a name in `partial` does not exist, or if the checkpoint is
            damaged.

    Example:
        >>> import tempfile, jax.numpy as jnp, mlox, optax
        >>> def problem(name):
        ...     return mlox.Problem.create(
        ...         name=name, params=jnp.ones(()), tx=optax.sgd(0.25),
        ...         loss_fn=lambda params, batch, ctx: params**2)
        >>> engine = mlox.Engine([problem("x")])
        >>> other = mlox.Engine([problem("y"), problem("z")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = engine.run(engine.init(), train_iters=2, loggers=(),
        ...                    checkpoint=mlox.Checkpoint(folder, every=1))
        ...     states = [mlox.restore(folder, engine.init(), cycle=i) for i in (1, 2)]
        ...     part = mlox.restore(
        ...         folder, other.init(), partial={"y.params": "x.params"})
        >>> [float(state["x"].params) for state in states]
        [0.5, 0.25]
        >>> float(part["y"].params), float(part["z"].params)
        (0.25, 1.0)
    """
    check_restore(cycle, state, partial)
    folder = CheckpointFolder(Checkpoint(directory).path)
    if not folder.parent.is_dir():
        raise FileNotFoundError(
            f"No checkpoints: {str(folder.parent)!r} is not a folder."
        )
    folder.check_format()
    parts = {STATE: STATE}
    if partial is not None:
        given = partial if isinstance(partial, Mapping) else {n: n for n in partial}
        parts = {f"{STATE}.{h}": f"{STATE}.{t}" for h, t in given.items()}
    match = match_parts(state, parts)
    found = _read(folder, cycle, match)
    if found is None:
        raise FileNotFoundError(
            f"No checkpoint {cycle!r} in {str(folder.parent)!r}: there are "
            f"{folder.cycles}."
        )
    return restore_into({STATE: state}, found.arrays)[STATE]


def _read(
    folder: CheckpointFolder, cycle: int | Literal["newest", "best"], match: Match
) -> Restored | None:
    """Read the checkpoint that `mlox.restore` is asked for; None if there is none."""
    if cycle == "newest":
        return read_newest(folder, match)
    if cycle == "best":
        which = _find_best(folder)
    else:
        which = cycle if cycle in folder.cycles else None
    try:
        return None if which is None else read(folder, which, match)
    except FileNotFoundError:  # deleted in the meantime
        return _read(folder, cycle, match)


def match_parts(state: PyTree, parts: Mapping[str, str]) -> Match:
    """Return a match of parts of a state: of shapes and dtypes.

    The parts are names in the checkpoint by names in the state, after "state.".
    """
    templates = name_leaves({STATE: state})

    def match(saved: Saved) -> dict[str, tuple[str, Any]]:
        there = {n: x for n, x in saved.leaves.items() if _is_within(n, STATE)}
        for part, source in parts.items():
            _check_there(part, templates, "the state")
            _check_there(source, there, f"checkpoint {str(saved.path)!r}")
        sources = {
            part + name.removeprefix(source): name
            for part, source in parts.items()
            for name in there
            if _is_within(name, source)
        }
        old = {h: f"{there[t].dtype}{there[t].shape}" for h, t in sources.items()}
        new = {
            name: f"{array.dtype}{list(array.shape)}"
            for name, array in templates.items()
            if any(_is_within(name, part) for part in parts)
        }
        _check_same(saved, old, new)
        return {h: (t, templates[h]) for h, t in sources.items()}

    return match


def match_run(state: PyTree, metadata: Mapping[str, Any]) -> Match:
    """Return a match of a whole checkpoint, which compares the engine as well."""
    match_state = match_parts(state, {STATE: STATE})

    def match(saved: Saved) -> dict[str, tuple[str, Any]]:
        there = saved.notes["engine"]
        if there is None:
            raise ValueError(
                f"Checkpoint {str(saved.path)!r} is of mlox.save, which keeps the "
                "state alone, and no history or positions of data. Start a run from "
                "mlox.restore(directory, engine.init()), with another directory for "
                "its checkpoints."
            )
        old, new = (
            {key: json.dumps(engine.get(key), sort_keys=True) for key in metadata}
            for engine in (there, metadata)
        )
        _check_same(saved, old, new)
        found = dict(match_state(saved))
        for name in saved.leaves:
            # Other states, such as "run.best", are split over processes like the state.
            like = f"{STATE}.{'.'.join(name.split('.')[2:])}"
            here = name.removeprefix(f"{RUN}.")
            found.setdefault(here, (name, found.get(like, (like, None))[1]))
        return found

    return match


def _check_there(part: str, names: Mapping[str, Any], whose: str) -> None:
    """Raise ValueError if no name is within a part, and list the names."""
    if not any(_is_within(name, part) for name in names):
        depth = part.count(".") + 1
        cut = {".".join(name.split(".")[1:depth]) for name in names}
        raise ValueError(
            f"restore: {whose} holds no {part.removeprefix(f'{STATE}.')!r}; it holds "
            f"{summarize(sorted(cut))}. Name what both hold as `partial`."
        )


def _check_same(saved: Saved, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Raise ValueError if two descriptions differ, with the first three differences."""
    rows = [
        f"{name.removeprefix(f'{STATE}.')}: {old.get(name, 'nothing'):.200} there, "
        f"{new.get(name, 'nothing'):.200} here"
        for name in dict.fromkeys([*new, *old])
        if old.get(name) != new.get(name)
    ]
    if rows:
        more = [f"and {len(rows) - 3} more"] if rows[3:] else []
        shown = "\n  ".join([*rows[:3], *more])
        raise ValueError(
            f"Checkpoint {str(saved.path)!r} is of another engine or state:\n  {shown}"
            "\nUse the engine and the state with which the run began, choose "
            "another directory, or restore what both share by `partial`."
        )


def _find_best(folder: CheckpointFolder) -> int | None:
    """Return the best checkpoint, by the options of the newest one."""

    def tell(message: str) -> None:
        warn(f"{message} It is left out.")

    notes = folder.read_all_notes(tell)
    if not notes:
        return None
    best, mode = notes[max(notes)]["best"]
    if best is None:
        raise FileNotFoundError(
            f"No checkpoint 'best' in {str(folder.parent)!r}: the run kept no best "
            f"one; there are {folder.cycles}. Pass `best=` to the mlox.Checkpoint of "
            "the run."
        )
    asked = Checkpoint(folder.parent, best=best, mode=mode)
    return find_best(asked, {cycle: x["scalars"] for cycle, x in notes.items()})


def _is_within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")
