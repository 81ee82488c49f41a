"""An open folder of checkpoints, written and read by Orbax."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import pathlib
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlox._checkpoint import Checkpoint, check_wanted

PyTree = Any
Arrays = dict[str, Any]
FORMAT = 1


class Snapshot(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        cycle: The cycles behind it.
        arrays: Trees of arrays by name when it is saved; arrays by name and path, as
            `flattened` gives them, when it was read.
        notes: What JSON holds besides.
    """

    cycle: int
    arrays: Mapping[str, PyTree]
    notes: Mapping[str, Any]


class Leaf(NamedTuple):
    """What a checkpoint notes of an array.

    Attributes:
        dtype: Its name.
        shape: Its shape.
        checksum: Of its bytes; None if no process has all of it.
    """

    dtype: str
    shape: list[int]
    checksum: int | None


@dataclass(frozen=True, eq=False)
class Store:
    """An open folder of checkpoints.

    Attributes:
        checkpoint: What the user asked for.
        manager: Orbax's manager of the folder.
        about: The description of the engine, for comparison; empty for none.
    """

    checkpoint: Checkpoint
    manager: Any
    about: Mapping[str, Any]

    @property
    def cycles(self) -> list[int]:
        """The checkpoints that there are, the oldest first."""
        return sorted(self.manager.all_steps())

    @property
    def best(self) -> int | None:
        """The checkpoint with the best score, or None if none has one."""
        best = self.manager.best_step()
        if best is None or self.manager.metrics(best)["score"] == math.inf:
            return None
        return best

    def save(self, snapshot: Snapshot, score: float | None) -> None:
        """Begin to save; the arrays may be donated once this has returned.

        Args:
            snapshot: What to save.
            score: The least of all is the best; None is none.
        """
        import orbax.checkpoint as ocp

        arrays = {
            path: _held(leaf) for path, leaf in flattened(snapshot.arrays).items()
        }
        stored = {path: array for path, array in arrays.items() if array.size}
        leaves = {
            path: Leaf(str(array.dtype), list(array.shape), _checksum(array))
            for path, array in arrays.items()
        }
        about = {"format": FORMAT, "cycle": snapshot.cycle, "about": dict(self.about)}
        notes = {**about, "leaves": leaves, "notes": dict(snapshot.notes)}
        # Orbax takes names from the paths, in which some signs have a meaning.
        numbered = {str(i): array for i, array in enumerate(stored.values())}
        self.manager.save(
            snapshot.cycle,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(numbered), notes=ocp.args.JsonSave(notes)
            ),
            metrics={"score": math.inf if score is None else score},
            force=True,
        )

    def newest(self, templates: Mapping[str, PyTree]) -> Snapshot | None:
        """Read the newest checkpoint that is whole, with a warning of others.

        Args:
            templates: Trees like those that were saved, of those names that matter.

        Returns:
            The snapshot; None if there is no checkpoint.

        Raises:
            ValueError: If it is of another engine, or none is whole.
        """
        broken: list[str] = []
        for cycle in reversed(self.cycles):
            try:
                found = self.read(cycle, templates)
            except BrokenError as error:
                broken.append(str(error))
                continue
            for message in broken:
                warnings.warn(
                    f"{message} The one after cycle {cycle} is taken.", stacklevel=2
                )
            return found
        if broken:
            raise ValueError(f"No checkpoint is whole. {' '.join(broken)}")
        return None

    def read(self, cycle: int, templates: Mapping[str, PyTree]) -> Snapshot:
        """Read a checkpoint.

        Args:
            cycle: Which.
            templates: As for `newest`.

        Returns:
            The snapshot.

        Raises:
            BrokenError: If it is not whole.
            ValueError: If it is of another engine.
        """
        import orbax.checkpoint as ocp

        folder = self.checkpoint.path / str(cycle)
        like = flattened(templates)
        with _whole(folder):
            args = ocp.args.Composite(notes=ocp.args.JsonRestore())
            notes = self.manager.restore(cycle, args=args)["notes"]
            if notes["format"] != FORMAT:
                raise ValueError(f"its format is {notes['format']}, not {FORMAT}")
            leaves = {path: Leaf(*leaf) for path, leaf in notes["leaves"].items()}
        there = {n: x for n, x in leaves.items() if n.split("|")[0] in templates}
        self._check(folder, notes["about"], there, like)
        with _whole(folder):
            arrays = self._arrays(cycle, leaves, like)
        return Snapshot(notes["cycle"], arrays, notes["notes"])

    def set_aside(self, after: int) -> None:
        """Rename what is newer than a cycle: it is broken, and will be saved anew."""
        newer = [cycle for cycle in self.cycles if cycle > after]
        for cycle in newer:
            folder = self.checkpoint.path / str(cycle)
            names = (f"broken-{cycle}-{i}" for i in itertools.count())
            folder.rename(
                next(p for n in names if not (p := folder.parent / n).exists())
            )
        if newer:
            self.manager.reload()

    def close(self) -> None:
        """Wait until everything is written."""
        try:
            self.manager.wait_until_finished()
        finally:
            self.manager.close()

    def _arrays(
        self, cycle: int, leaves: Mapping[str, Leaf], like: Mapping[str, Any]
    ) -> Arrays:
        """Read all arrays, and hold them against their checksums."""
        import orbax.checkpoint as ocp

        stored = [path for path, leaf in leaves.items() if 0 not in leaf.shape]
        target = {
            str(i): _target(leaves[path], like.get(path))
            for i, path in enumerate(stored)
        }
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(target))
        read = self.manager.restore(cycle, args=args)["arrays"]
        arrays = {path: _target(leaf, None) for path, leaf in leaves.items()}
        arrays |= {path: read[str(i)] for i, path in enumerate(stored)}
        for path, leaf in leaves.items():
            if leaf.checksum is not None and leaf.checksum != _checksum(arrays[path]):
                raise ValueError(f"the numbers of {path} are not those saved")
        return arrays

    def _check(
        self,
        folder: pathlib.Path,
        about: Mapping[str, Any],
        there: Mapping[str, Leaf],
        like: Mapping[str, Any],
    ) -> None:
        """Refuse a checkpoint of another engine, and list the differences."""
        differences = [
            f"{key}: {about.get(key)!r} there, {value!r} here"
            for key, value in self.about.items()
            if about.get(key) != value
        ]
        old = {path: f"{leaf.dtype}{leaf.shape}" for path, leaf in there.items()}
        new = {path: f"{x.dtype}{list(x.shape)}" for path, x in like.items()}
        for path in sorted({*old, *new}):
            sides = old.get(path, "nothing"), new.get(path, "nothing")
            if sides[0] != sides[1]:
                name = path.removeprefix("state|")
                differences.append(f"{name}: {sides[0]} there, {sides[1]} here")
        if differences:
            shown = "\n  ".join(differences[:20])
            more = f"\n  and {len(differences) - 20} more" if differences[20:] else ""
            raise ValueError(
                f"Checkpoint {str(folder)!r} is of another engine or state:\n  "
                f"{shown}{more}\nGo on with the engine and the state with which the "
                "run began, or choose another directory."
            )


class BrokenError(ValueError):
    """A checkpoint that is not whole."""


def opened(checkpoint: Checkpoint, about: Mapping[str, Any]) -> Store:
    """Open a folder of checkpoints; it must be closed."""
    # Imported here: it takes longer than all else that `import mlox` adds to JAX.
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    def score(metrics: Any) -> float:
        return metrics["score"]

    kept: list[Any] = [policies.LatestN(checkpoint.keep)]
    if checkpoint.best is not None:
        kept.append(policies.BestN(get_metric_fn=score, reverse=True, n=1))
    options = ocp.CheckpointManagerOptions(
        best_fn=score,  # without it, the scores are forgotten with the process
        best_mode="min",
        preservation_policy=policies.AnyPreservationPolicy(kept),
        enable_async_checkpointing=checkpoint.async_,
        cleanup_tmp_directories=True,
    )
    manager = ocp.CheckpointManager(checkpoint.path, options=options)
    return Store(checkpoint, manager, about)


def flattened(trees: Mapping[str, PyTree]) -> Arrays:
    """Return all leaves by name and path; keys of random numbers as their data."""
    return {
        f"{name}|{jax.tree_util.keystr(path)}": (
            jax.random.key_data(leaf) if _is_key(leaf) else leaf
        )
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


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
        array = _placed(arrays[f"{name}|{jax.tree_util.keystr(path)}"], like)
        if _is_key(like):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
        return array

    return jax.tree_util.tree_map_with_path(leaf, template)


def _placed(array: Any, like: Any) -> Any:
    """Put an array where another one is; committed to its place only if that one is."""
    if isinstance(array, jax.Array) or not isinstance(like, jax.Array):
        return array
    if _is_key(like) or not like.committed:
        return jnp.asarray(array)
    return jax.device_put(array, like.sharding)


def _target(leaf: Leaf, like: Any) -> Any:
    """Say as what Orbax should read an array: whole, or the shards of this process."""
    if isinstance(like, jax.Array) and not like.is_fully_addressable:
        return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=like.sharding)
    return np.broadcast_to(np.zeros((), jnp.dtype(leaf.dtype)), leaf.shape)


def _held(leaf: Any) -> Any:
    """Copy an array to the host, as its buffer may be donated while it is written."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf  # Orbax copies the shards of this process before it returns
    return np.array(leaf)


def _checksum(array: Any) -> int | None:
    """Sum up the bytes of an array, if this process has all of it."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return None
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


@contextlib.contextmanager
def _whole(folder: pathlib.Path) -> Iterator[None]:
    """Turn whatever goes wrong when a checkpoint is read into one kind of error."""
    try:
        yield
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:200]
        raise BrokenError(
            f"Checkpoint {str(folder)!r} is broken ({type(error).__name__}: {first})."
        ) from error


def restore(
    directory: str | os.PathLike[str],
    state: PyTree,
    *,
    cycle: int | Literal["newest", "best"] = "newest",
) -> PyTree:
    """Read the state of a checkpoint of a run.

    Args:
        directory: The folder that `mlox.Checkpoint` was given.
        state: A state like the one that was saved, e.g. `engine.init()`: its structure,
            shapes, dtypes and devices are taken.
        cycle: The newest whole checkpoint, the best one by the `best` of the
            `mlox.Checkpoint`, or the one after a number of cycles.

    Returns:
        The state that was saved.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the state is of another kind, with a list of the differences, or
            what was asked for is not whole.

    Example:
        >>> import tempfile, jax.numpy as jnp, mlox, optax
        >>> problem = mlox.Problem.create(
        ...     name="x", params=jnp.ones(()), tx=optax.sgd(0.25),
        ...     loss_fn=lambda params, batch, ctx: params**2)
        >>> engine = mlox.Engine([problem])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = engine.run(engine.init(), train_iters=2, loggers=(),
        ...                    checkpoint=mlox.Checkpoint(folder, every=1))
        ...     states = [mlox.restore(folder, engine.init(), cycle=i) for i in (1, 2)]
        >>> [float(state["x"].params) for state in states]
        [0.5, 0.25]
    """
    check_wanted(cycle, state)
    folder = Checkpoint(directory).path
    if not folder.is_dir():
        raise FileNotFoundError(f"No checkpoints: {str(folder)!r} is no folder.")
    with contextlib.closing(opened(Checkpoint(folder), {})) as store:
        if cycle == "newest":
            found = store.newest({"state": state})
        else:
            which = store.best if cycle == "best" else cycle
            found = None
            if which in store.cycles:
                found = store.read(which, {"state": state})
        if found is None:
            raise FileNotFoundError(
                f"No checkpoint {cycle!r} in {str(folder)!r}: there are {store.cycles}."
            )
    return filled("state", state, found.arrays)
