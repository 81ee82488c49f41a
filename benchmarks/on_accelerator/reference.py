"""The hypergradients of every method in float64, on the CPU."""

from __future__ import annotations

import functools
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from on_accelerator import regression
from on_accelerator.correctness import Reference, file_of
from on_accelerator.parts import Place, Row, Rows
from on_accelerator.sizes import SIZES, Regression

condition = functools.cache(regression.condition)


def rows(place: Place) -> Rows:
    """Return a row for each method, in the order in which they are waited for."""
    size = SIZES[place.size].regression
    return {
        name: partial(write, name, way, size, place.folder)
        for name, way in regression.ways(size).items()
    }


def write(name: str, way: regression.Way, size: Regression, folder: Path) -> Row:
    """Write the reference of a method, so that its file is there only when whole."""
    reference = in_float64(way, size)
    path = file_of(folder, name)
    begun = path.with_suffix(".begun.npz")
    np.savez(begun, **reference._asdict())
    begun.rename(path)
    return {"size": float(np.linalg.norm(reference.hypergradient))}


def in_float64(way: regression.Way, size: Regression) -> Reference:
    """Return the hypergradient of float64 parameters; needs `jax_enable_x64`."""
    exact = regression.PRECISIONS[0]
    found = regression.hypergradient(way, size, jnp.float64, exact)
    return Reference(found, condition(size))
