"""A network that makes many steps under weights of its examples, and what it is given.

Two hidden layers of tanh, 16 examples of 10 classes a step, some with wrong labels. The
upper has a weight for each example, and 64 rows with true labels.
"""

from __future__ import annotations

import itertools

import numpy as np

SIZES, EXAMPLES, ROWS = (32, 64, 64, 10), 64, 16


def draw(steps: int) -> dict[str, np.ndarray]:
    """Draw the first parameters, and the data of a window of so many steps.

    Returns:
        "matrix0", "bias0" and so on, [inputs, outputs] and [outputs]; of each step "x",
        "label" and "index", the numbers of its examples; and "true_x", "true_label".
    """
    rng = np.random.default_rng(0)
    given = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(SIZES)):
        given[f"matrix{i}"] = rng.normal(size=(inputs, outputs)) / inputs**0.5
        given[f"bias{i}"] = np.zeros(outputs)
    centres = rng.normal(size=(SIZES[-1], SIZES[0]))
    label = rng.integers(SIZES[-1], size=2 * EXAMPLES)
    x = centres[label] + rng.normal(size=(2 * EXAMPLES, SIZES[0]))
    wrong = rng.random(EXAMPLES) < 0.4
    seen = np.where(wrong, rng.integers(SIZES[-1], size=EXAMPLES), label[:EXAMPLES])
    index = rng.integers(EXAMPLES, size=(steps, ROWS))
    given |= {"x": x[index], "true_x": x[EXAMPLES:]}
    given = {name: array.astype(np.float32) for name, array in given.items()}
    given |= {"index": index, "label": seen[index], "true_label": label[EXAMPLES:]}
    return given
