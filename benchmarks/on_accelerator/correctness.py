"""The hypergradients of every method on the device beside float64 on the CPU.

An operand of a product is rounded by a factor 1 + u at most. What follows grows that:

    one gradient         1
    T steps              T: each adds its own rounding to the answer
    a linear solve       the condition number of the matrix
    a difference         1 / e, for a perturbation e of the parameters
    a penalty            its strength, with which a difference of slopes is multiplied

so that the relative error of a hypergradient is at most C u times this growth. C stands
for the few products that follow each other in a gradient, with random signs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from on_accelerator import regression
from on_accelerator.parts import Place, Row, Rows
from on_accelerator.sizes import SIZES, Regression

C = 8.0
PATIENCE = 60.0


class Reference(NamedTuple):
    """What is known in float64.

    Attributes:
        hypergradient: That of the method.
        condition: The condition number of the Hessian of the lower's loss.
    """

    hypergradient: np.ndarray
    condition: float


def rows(place: Place) -> Rows:
    """Return a row for each method."""
    size = SIZES[place.size].regression
    return {
        name: partial(measure, name, way, size, place.folder)
        for name, way in regression.ways(size).items()
    }


def measure(name: str, way: regression.Way, size: Regression, folder: Path) -> Row:
    """Compare with what `reference` writes, which runs beside."""
    found = in_float32(way, size)
    return compare(found, way, size, waited(folder, name, PATIENCE))


def in_float32(way: regression.Way, size: Regression) -> dict[str, np.ndarray]:
    """Return the hypergradient of float32 parameters in each precision."""
    return {
        precision.name: regression.hypergradient(way, size, jnp.float32, precision)
        for precision in regression.PRECISIONS
    }


def compare(
    found: Mapping[str, np.ndarray],
    way: regression.Way,
    size: Regression,
    reference: Reference,
) -> Row:
    """Return the relative error in each precision, and what is accepted."""
    expected, growth = reference.hypergradient, way.growth(reference.condition, size)
    errors = {key: error(value, expected) for key, value in found.items()}
    accepted = {p.name: C * p.unit * growth for p in regression.PRECISIONS}
    wrong = [key for key, x in errors.items() if not x <= accepted[key]]
    return {"errors": errors, "accepted": accepted, "wrong": wrong}


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the relative error of a vector."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def waited(folder: Path, name: str, patience: float) -> Reference:
    """Return a reference when it is there.

    Raises:
        TimeoutError: If it does not come.
    """
    path, end = file_of(folder, name), time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"no reference for {name}")
        time.sleep(0.05)
    with np.load(path) as file:
        return Reference(file["hypergradient"], float(file["condition"]))


def file_of(folder: Path, name: str) -> Path:
    """Return where the reference of a method is written."""
    return folder / f"{name}.npz"
