"""Gradients as vectors: how far two of them are apart, and along which directions."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from mlox._utils.types import PyTree

MOST_DIRECTIONS = 6


class Distance(NamedTuple):
    """How a vector differs from a reference.

    Attributes:
        cosine: The cosine of the angle between the two.
        ratio: Its norm, relative to that of the reference.
        error: The norm of the difference, relative to that of the reference.

    Example:
        >>> Distance(cosine=1.0, ratio=2.0, error=1.0).error
        1.0
    """

    cosine: float
    ratio: float
    error: float

    @property
    def text(self) -> str:
        """The error in words, after "it is" and before "off"."""
        if self.error < 2:
            return f"{self.error:.0%}"
        digits = f"{self.error:.2g}"
        whole = f"{float(digits):,.0f}" if 10 <= self.error < 1e6 else digits
        return f"{whole} times its length"


def as_vector(tree: PyTree) -> np.ndarray:
    """Return a pytree of floating arrays as one vector in float64.

    Example:
        >>> as_vector({"b": np.ones(1), "a": np.zeros((2, 1))})
        array([0., 0., 1.])
    """
    leaves = [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.ravel() for leaf in leaves] or [np.zeros(0)])


def compare_vectors(found: np.ndarray, reference: np.ndarray) -> Distance:
    """Return how a vector differs from a reference; two zero vectors are equal.

    Example:
        >>> compare_vectors(np.array([0.0, 3.0]), np.array([4.0, 0.0]))
        Distance(cosine=0.0, ratio=0.75, error=1.25)
    """
    if not (np.isfinite(found).all() and np.isfinite(reference).all()):
        return Distance(np.nan, np.nan, np.nan)
    # Scaled, so that squares neither overflow nor vanish.
    unit = max(np.abs(found).max(initial=0), np.abs(reference).max(initial=0))
    if unit == 0:
        return Distance(1.0, 1.0, 0.0)
    a, b = found / unit, reference / unit
    size, other = np.linalg.norm(a), np.linalg.norm(b)
    if other == 0:
        return Distance(0.0, np.inf, np.inf)
    cosine = a @ b / (size * other) if size > 0 else 0.0
    ratio, error = size / other, np.linalg.norm(a - b) / other
    return Distance(float(cosine), float(ratio), float(error))


def choose_directions(tree: PyTree, seed: int, first: PyTree) -> list[PyTree]:
    """Return orthonormal directions: all of a small space, else some at random.

    Args:
        tree: The parameters.
        seed: The seed of random ones.
        first: A pytree like the parameters; the first direction is parallel to it.
    """
    size = as_vector(tree).size
    count = min(size, MOST_DIRECTIONS)
    columns = np.random.default_rng(seed).normal(size=(size, count))
    start = as_vector(first)
    if np.isfinite(start).all() and np.linalg.norm(start) > 0:
        columns[:, 0] = start / np.linalg.norm(start)
    basis = np.linalg.qr(columns)[0]
    return [as_tree(column, tree) for column in basis.T]


def as_tree(vector: np.ndarray, like: PyTree) -> PyTree:
    """Return a vector as a pytree with the shapes and dtypes of another one.

    Example:
        >>> as_tree(np.ones(2), {"w": np.zeros(2, np.float32)})
        {'w': array([1., 1.], dtype=float32)}
    """
    leaves, structure = jax.tree.flatten(like)
    sizes = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = [
        part.reshape(leaf.shape).astype(leaf.dtype)
        for part, leaf in zip(np.split(vector, sizes), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, parts)


def shift(tree: PyTree, length: float, direction: PyTree) -> PyTree:
    """Return `tree + length * direction`, in the dtypes of the tree.

    Example:
        >>> print(shift(np.ones(2), 0.5, np.ones(2)))
        [1.5 1.5]
    """
    return jax.tree.map(
        lambda x, d: x + np.asarray(length, x.dtype) * d.astype(x.dtype),
        tree,
        direction,
    )


def scale_of(tree: PyTree) -> float:
    """Return a length over which parameters are expected to vary.

    Example:
        >>> scale_of(np.zeros(4))
        1.0
    """
    vector = as_vector(tree)
    size = float(np.linalg.norm(vector)) / max(1.0, np.sqrt(vector.size))
    return max(size, 0.1) if size > 0 else 1.0
