"""Warnings that point to the line of the user, wherever they are found."""

from __future__ import annotations

import contextlib
import inspect
import os
import pathlib
import warnings

import jax

# Code that is between the line of the user and what warns.
INTERNAL = (
    f"{pathlib.Path(__file__).parents[1]}{os.sep}",
    f"{pathlib.Path(jax.__file__).parent}{os.sep}",
    contextlib.__file__,
)


def warn(text: str) -> None:
    """Warn once for each line of the user's code from which this is reached."""
    # What is traced is called by JAX, at a depth that nobody knows.
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(INTERNAL):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
