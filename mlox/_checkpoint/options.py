"""Checkpoints of runs: when to save, and where, as a value."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np


@dataclass(frozen=True)
class Checkpoint:
    """When a run saves what it needs to go on bit for bit, and where.

    A checkpoint holds the whole state (parameters, optimizers, model states, keys,
    counts, loss scales), the sums of metrics since the last log point, the history, the
    early stopping and the positions of the data. It is written beside its place and
    moved there when it is whole: a run that is killed at any moment goes on from the
    one before. With a checkpoint, SIGTERM and Ctrl-C let the dispatch at hand end,
    save, and stop; the second one is not waited for.

    Attributes:
        directory: A folder; it is made if it does not exist. All processes must see
            it. Buckets must be mounted.
        every: Cycles between checkpoints; there is one at the end, too.
        keep: How many of the newest are kept.
        best: The name of a scalar, such as "validation/accuracy": the checkpoint where
            it was best is kept, too.
        mode: "min" if smaller is better, "max" if larger is.
        async_: Whether files are written while the run goes on.

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
        if not isinstance(self.directory, str | os.PathLike) or not str(self.directory):
            raise TypeError(
                f"Checkpoint: directory is {self.directory!r}; expected a path."
            )
        if "://" in str(self.directory):
            raise ValueError(
                f"Checkpoint: directory is {self.directory!r}; expected a folder of a "
                "file system. Mount the bucket (Cloud Storage FUSE, s3fs) or a shared "
                "disk, and pass the path there."
            )
        for what in ("every", "keep"):
            value = {"every": self.every, "keep": self.keep}[what]
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or value < 1:
                raise ValueError(
                    f"Checkpoint: {what} is {value!r}; expected a positive int."
                )
        if self.best is not None and (
            not isinstance(self.best, str) or "/" not in self.best
        ):
            raise ValueError(
                f"Checkpoint: best is {self.best!r}; expected the name of a scalar, "
                "e.g. 'validation/accuracy', or None."
            )
        if self.mode not in ("min", "max"):
            raise ValueError(
                f"Checkpoint: mode is {self.mode!r}; expected 'min' if smaller is "
                "better, or 'max' if larger is."
            )
        if not isinstance(self.async_, bool):
            raise TypeError(
                f"Checkpoint: async_ is {self.async_!r}; expected True or False."
            )

    def score(self, scalars: Mapping[str, float]) -> float | None:
        """Return by what the best checkpoint is chosen: the less, the better."""
        value = math.nan if self.best is None else scalars.get(self.best, math.nan)
        signed = value if self.mode == "min" else -value
        return None if math.isnan(signed) else signed

    @property
    def of_scores(self) -> bool:
        """Whether the best is by a score of the validation."""
        return self.best is not None and self.best.startswith("validation/")

    @property
    def path(self) -> pathlib.Path:
        """The folder, as an absolute path."""
        return pathlib.Path(self.directory).absolute()


def check_checkpoint(checkpoint: Any, resume: Any, every: Mapping[str, int]) -> None:
    """Refuse what is no checkpoint, and a best that is not recorded where it saves.

    Args:
        checkpoint: What `run` was given.
        resume: What `run` was given.
        every: Cycles between log points ("mean") and validations ("score").

    Raises:
        TypeError: If one is of a wrong kind.
        ValueError: If there is nothing to resume, or the best is not known.
    """
    if not isinstance(resume, bool):
        raise TypeError(f"`resume` is {resume!r}; expected True or False.")
    if checkpoint is None:
        if resume:
            raise ValueError(
                "`resume` is True, but there is no `checkpoint`: pass "
                "mlox.Checkpoint(directory), the one of the run that was stopped."
            )
        return
    if not isinstance(checkpoint, Checkpoint):
        raise TypeError(
            f"`checkpoint` is {checkpoint!r}; expected a mlox.Checkpoint, e.g. "
            "mlox.Checkpoint('runs/first', every=100)."
        )
    _check_folder(checkpoint.path)
    if checkpoint.best is None:
        return
    kind = "score" if checkpoint.of_scores else "mean"
    if kind not in every:
        raise ValueError(
            f"`checkpoint` keeps the best {checkpoint.best!r}, but there is no "
            "`validation`: pass a function from a state to a dict of scalars."
        )
    if checkpoint.every % every[kind]:
        option = {"score": "valid_every", "mean": "log_every"}[kind]
        raise ValueError(
            f"`checkpoint` keeps the best {checkpoint.best!r}, which is recorded "
            f"every {every[kind]} cycles, but saves every {checkpoint.every}: "
            f"make its `every` a multiple of `{option}`."
        )


def check_best(checkpoint: Checkpoint | None, recorded: Iterable[str]) -> None:
    """Refuse a best by a scalar that is not among those that were recorded."""
    if checkpoint is None or checkpoint.best is None or checkpoint.best in recorded:
        return
    raise ValueError(
        f"`checkpoint` keeps the best {checkpoint.best!r}, but no scalar is recorded "
        f"under this name. There are {sorted(recorded)}."
    )


def check_wanted(cycle: Any, state: Any) -> None:
    """Refuse what names no checkpoint, and a state that holds no arrays."""
    for leaf in jax.tree.leaves(state):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            raise TypeError(
                f"restore: state holds a leaf of type {type(leaf).__name__}; expected "
                "a state like the one that was saved, e.g. engine.init()."
            )
    whole = isinstance(cycle, int | np.integer) and not isinstance(cycle, bool)
    if not whole and cycle not in ("newest", "best"):
        raise ValueError(
            f"restore: cycle is {cycle!r}; expected 'newest', 'best', or a number of "
            "cycles."
        )


def check_reached(cycle: int, train_iters: int) -> None:
    """Refuse to resume a run that has gone on for longer."""
    if cycle > train_iters:
        raise ValueError(
            f"`train_iters` is {train_iters}, but the run that is resumed has reached "
            f"cycle {cycle}: pass as many or more, or mlox.restore an earlier "
            "checkpoint."
        )


def _check_folder(path: pathlib.Path) -> None:
    """Refuse a path where no folder can be, before anything runs."""
    files = [p for p in (path, *path.parents) if p.exists() and not p.is_dir()]
    if files:
        raise NotADirectoryError(
            f"`checkpoint`: {str(files[0])!r} is a file; expected a folder, or a path "
            "where one can be made. Choose another directory."
        )
