"""Classifying drawn images: what the sides of attribution and of the schedule share."""

from __future__ import annotations

import itertools

import numpy as np


def draw(
    sizes: tuple[int, ...],
    *,
    rows: int,
    batch: int,
    steps: int,
    queries: int,
    judged: int,
) -> dict[str, np.ndarray]:
    """Draw first weights, examples to train on, and some that judge.

    Returns:
        "weights0", "bias0" and so on, [inputs, outputs] and [outputs]; the examples "x"
        and "y", [rows, ...]; "order", which of them each step of a training takes,
        [steps, batch]; and "query_x" and "query_y", [queries, judged, ...].
    """
    rng = np.random.default_rng(0)
    given = {}
    for i, size in enumerate(itertools.pairwise(sizes)):
        given[f"weights{i}"] = rng.normal(size=size) / size[0] ** 0.5
        given[f"bias{i}"] = 0.1 * rng.normal(size=size[1])
    centres = rng.normal(size=(sizes[-1], sizes[0])) / sizes[0] ** 0.5

    def images(*shape: int) -> tuple[np.ndarray, np.ndarray]:
        label = rng.integers(sizes[-1], size=shape)
        noise = rng.normal(size=(*shape, sizes[0])) / sizes[0] ** 0.5
        return 4 * (centres[label] + noise), label

    given["x"], given["y"] = images(rows)
    given["query_x"], given["query_y"] = images(queries, judged)
    given = {name: array.astype(np.float32) for name, array in given.items()}
    labels = {name: given[name].astype(np.int64) for name in ("y", "query_y")}
    return {**given, **labels, "order": rng.integers(rows, size=(steps, batch))}
