"""Regression on sinusoids: what every side of MAML and implicit MAML starts from.

The job of Finn, Abbeel and Levine (ICML 2017): a network of 2 x 40 ReLUs, 10 points to
learn from and 10 that judge, sinusoids of random amplitude and phase.
"""

from __future__ import annotations

import itertools

import numpy as np

SHOTS, SIZES, BATCHES = 10, (1, 40, 40, 1), 10


def draw(tasks: int) -> dict[str, np.ndarray]:
    """Draw the first weights as torch does, and batches of tasks to take in turn.

    Returns:
        "weights0", "bias0" and so on, [inputs, outputs] and [outputs], and for each
        batch and task the points: "support_x", "support_y", "query_x" and "query_y",
        [batches, tasks, shots, 1].
    """
    rng = np.random.default_rng(0)
    given = {}
    for i, size in enumerate(itertools.pairwise(SIZES)):
        given[f"weights{i}"] = rng.uniform(-1, 1, size) / size[0] ** 0.5
        given[f"bias{i}"] = rng.uniform(-1, 1, size[1]) / size[0] ** 0.5
    amplitude = rng.uniform(0.1, 5, (BATCHES, tasks, 1, 1))
    phase = rng.uniform(0, np.pi, (BATCHES, tasks, 1, 1))
    x = rng.uniform(-5, 5, (BATCHES, tasks, 2 * SHOTS, 1))
    y = amplitude * np.sin(x + phase)
    given |= {"support_x": x[:, :, :SHOTS], "support_y": y[:, :, :SHOTS]}
    given |= {"query_x": x[:, :, SHOTS:], "query_y": y[:, :, SHOTS:]}
    return {name: array.astype(np.float32) for name, array in given.items()}
