"""The options of checkpoints: when to save, where, and which ones to keep."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from mlox._checkpoint.folder import CheckpointFolder
from mlox._utils.describe import summarize
from mlox._utils.fields import (
    COUNT,
    COUNT_OR_ZERO,
    FLAG,
    NAME_OF_SCALAR,
    PATH,
    Kind,
    check,
    check_fields,
    instance_of,
    is_int,
    one_of,
    optional,
)
from mlox._utils.types import Scalars


@dataclass(frozen=True)
class Checkpoint:
    """Save checkpoints during a run, from which it can be resumed bit for bit.

    A checkpoint has the whole state (parameters, optimizers, model states, keys,
    counts, loss scales), the sums of metrics since the last log point, the history, the
    early stopping and the positions of the data. It is written to a temporary folder
    that is renamed when it is complete: a run that is killed during a save is resumed
    from the checkpoint before. With a checkpoint, a run that gets SIGTERM or Ctrl-C
    finishes the current dispatch, saves, and stops; a second signal acts at once.

    Attributes:
        directory: A folder; it is created if it does not exist. All processes must have
            access to it. Buckets must be mounted.
        every: Cycles between checkpoints. There is also one at the end.
        keep: The number of newest checkpoints to keep.
        best: The name of a scalar, such as "validation/accuracy": the checkpoint with
            its best value is kept as well.
        mode: "min" if smaller is better, "max" if larger is.
        async_: Whether files are written in the background while the run continues.

    Raises:
        TypeError: If an attribute is of a wrong kind.
        ValueError: If an attribute is wrong.

    Example:
        >>> import tempfile, jax.numpy as jnp, mlox, optax
        >>> problem = mlox.Problem.create(
        ...     name="x", params=jnp.ones(()), tx=optax.sgd(0.25),
        ...     loss_fn=lambda params, batch, ctx: params**2)
        >>> engine = mlox.Engine([problem])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     options = {"loggers": (), "checkpoint": mlox.Checkpoint(folder)}
        ...     _ = engine.run(engine.init(), train_iters=2, **options)
        ...     state, history = engine.run(
        ...         engine.init(), train_iters=4, resume=True, **options)
        >>> float(state["x"].params), history["cycle"].tolist()
        (0.0625, [1, 2, 3, 4])
    """

    directory: str | os.PathLike[str]
    every: int = 100
    keep: int = 3
    best: str | None = None
    mode: Literal["min", "max"] = "min"
    async_: bool = True

    def __post_init__(self) -> None:
        check_fields(
            self,
            directory=_DIRECTORY,
            every=COUNT,
            keep=COUNT,
            best=optional(NAME_OF_SCALAR),
            mode=one_of("min", "max"),
            async_=FLAG,
        )
        if "://" in str(self.directory):
            raise ValueError(
                f"Checkpoint: directory is {self.directory!r}; expected a folder of a "
                "file system. Mount the bucket (Cloud Storage FUSE, s3fs) or a shared "
                "disk, and pass the path there."
            )

    @property
    def of_scores(self) -> bool:
        """Whether the best checkpoint is chosen by a score of the validation."""
        return self.best is not None and self.best.startswith("validation/")

    @property
    def path(self) -> pathlib.Path:
        """The folder, as an absolute path."""
        return pathlib.Path(self.directory).absolute()


def find_best(checkpoint: Checkpoint, scalars: Mapping[int, Scalars]) -> int | None:
    """Return the first cycle with the best scalar, or None if none was logged.

    Example:
        >>> asked = Checkpoint("runs", best="validation/error")
        >>> find_best(asked, {10: {"validation/error": 0.5}, 20: {}})
        10
    """
    sign = 1 if checkpoint.mode == "min" else -1
    found = {
        cycle: sign * logged.get(checkpoint.best or "", math.nan)
        for cycle, logged in scalars.items()
    }
    scores = {cycle: score for cycle, score in found.items() if not math.isnan(score)}
    return min(scores, key=lambda cycle: (scores[cycle], cycle), default=None)


def check_checkpoint(
    checkpoint: Any, resume: Any, log_every: int, valid_every: int | None
) -> None:
    """Validate the arguments of a run; `valid_every` is None without a validation."""
    check("`resume`", resume, FLAG)
    if checkpoint is None:
        if resume:
            raise ValueError(
                "`resume` is True, but there is no `checkpoint`: pass "
                "mlox.Checkpoint(directory), the one of the run that was stopped."
            )
        return
    check("`checkpoint`", checkpoint, _CHECKPOINT)
    check_place("`checkpoint`", CheckpointFolder(checkpoint.path).path)
    if checkpoint.best is None:
        return
    scored = checkpoint.of_scores
    every, option = (valid_every, "valid_") if scored else (log_every, "log_")
    if every is None:
        raise ValueError(
            f"`checkpoint` keeps the best {checkpoint.best!r}, but there is no "
            "`validation`: pass a function from a state to a dict of scalars."
        )
    if checkpoint.every % every:
        raise ValueError(
            f"`checkpoint` keeps the best {checkpoint.best!r}, which is recorded "
            f"every {every} cycles, but saves every {checkpoint.every}: "
            f"make its `every` a multiple of `{option}every`."
        )


def check_place(label: str, place: pathlib.Path) -> None:
    """Raise NotADirectoryError if a file is where a folder is to be made."""
    paths = [path for path in (place, *place.parents) if path.exists()]
    in_the_way = [path for path in paths if not path.is_dir()]
    if in_the_way:
        raise NotADirectoryError(
            f"{label}: {str(in_the_way[0])!r} is a file; expected a folder, or a path "
            "where one can be made. Choose another directory."
        )


def check_best(checkpoint: Checkpoint | None, recorded: Iterable[str]) -> None:
    """Raise ValueError if the score of the best checkpoint is not recorded."""
    if checkpoint is None or checkpoint.best is None or checkpoint.best in recorded:
        return
    raise ValueError(
        f"`checkpoint` keeps the best {checkpoint.best!r}, but no scalar is recorded "
        f"under this name. There are {summarize(sorted(recorded), 500)}."
    )


def check_restore(cycle: Any, state: Any, partial: Any) -> None:
    """Validate the arguments of `mlox.restore`."""
    for leaf in jax.tree.leaves(state):
        check("restore: state holds a leaf that", leaf, _ARRAY)
    check("restore: cycle", cycle, _CYCLE)
    check("restore: partial", partial, _PARTS)


def check_save(state: Any, cycle: Any) -> None:
    """Validate the arguments of `mlox.save`."""
    leaves = jax.tree.leaves(state)
    hint = "Pass the state that a step returned, or engine.init()."
    check("save: state", leaves, _SOME, hint)
    for leaf in leaves:
        check("save: state holds a leaf that", leaf, _ARRAY)
        check("save: state holds an array that", leaf, _ALIVE, hint)
    check("save: cycle", cycle, COUNT_OR_ZERO, "Pass the number of finished cycles.")


def check_reached(cycle: int, train_iters: int) -> None:
    """Raise ValueError if the run to resume has finished more cycles."""
    if cycle > train_iters:
        raise ValueError(
            f"`train_iters` is {train_iters}, but the run that is resumed has reached "
            f"cycle {cycle}: pass as many or more, or mlox.restore an earlier "
            "checkpoint."
        )


def _are_parts(value: Any) -> bool:
    if value is None or isinstance(value, str) or not isinstance(value, Collection):
        return value is None
    names = [*value, *(value.values() if isinstance(value, Mapping) else ())]
    return names != [] and all(isinstance(name, str) for name in names)


_DIRECTORY = PATH._replace(accepts=lambda x: PATH.accepts(x) and str(x) != "")
_CHECKPOINT = instance_of(
    Checkpoint, "a mlox.Checkpoint, e.g. mlox.Checkpoint('runs/first', every=100)"
)
_ARRAY = instance_of(
    jax.Array | np.ndarray | np.generic,
    "arrays only, as in a state like the one that was saved, e.g. engine.init()",
)
_SOME = Kind("a pytree of arrays, such as {name: Problem}", bool)
_ALIVE = Kind(
    "arrays that can still be read, not those that were donated to a step",
    lambda x: not (isinstance(x, jax.Array) and x.is_deleted()),
)
_CYCLE = Kind(
    "'newest', 'best', or a number of cycles",
    lambda x: is_int(x) or (isinstance(x, str) and x in ("newest", "best")),
)
_PARTS = Kind(
    "names such as ['classifier.params'], a dict from names here to names there, or "
    "None",
    _are_parts,
    TypeError,
)
