"""The inner loop as a function of the upper: how smooth it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mlox._check.vectors import shift
from mlox._utils.types import PyTree


def metasmoothness(
    train: Callable[[PyTree], np.ndarray],
    params: PyTree,
    directions: Sequence[PyTree],
    step: float,
) -> float | None:
    """Return how smoothly trained parameters depend on those of an upper.

    With theta(w) the outcome of the training at w, and d = |theta(w + 2hv) - theta(w)|,
    it is

        sum of d / ||d||_1 sign(theta(w + 2hv) - theta(w + hv))
                           sign(theta(w + hv) - theta(w)),

    the mean over directions v: 1 if every parameter moves on in the direction in which
    it began to, about 0 if the training is chaotic. None if nothing moves.

    Args:
        train: w -> theta, as a vector.
        params: w.
        directions: The directions v.
        step: The length h.

    References:
        Engstrom et al., Optimizing ML Training with Metagradient Descent, 2025,
        definition 2.

    Example:
        >>> metasmoothness(lambda w: np.array([w**2]), np.ones(()), [np.ones(())], 0.1)
        1.0
    """
    start = train(params)
    agreed = total = 0.0
    for v in directions:
        first, second = (train(shift(params, i * step, v)) for i in (1, 2))
        moved = np.abs(second - start)
        # Below the rounding of the training itself a sign means nothing.
        moved = np.where(moved > 1e-11 * np.abs(start), moved, 0)
        signs = np.sign(second - first) * np.sign(first - start)
        if np.isfinite(moved).all() and moved.sum() > 0:
            agreed += float((moved * signs).sum() / moved.sum())
            total += 1
    return agreed / total if total else None
