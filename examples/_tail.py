"""The picture of long_tailed.py: learned weights and accuracies."""

from typing import Any

import numpy as np
from _picture import COLORS, panels, save
from scipy.special import expit


def draw(runs: Any, learned: np.ndarray, file: str) -> None:
    """Draw the learned weights of the first seed, and all accuracies."""
    figure, (left, bars) = panels(1, 2)
    losses, ends = np.linspace(0, 5, 50), {0: "largest class", 9: "smallest class"}
    for k, (a, b) in enumerate(learned.T):
        color = (0.1 + 0.08 * k, 0.45, 0.85 - 0.08 * k)
        left.plot(losses, expit(a - b * losses), color=color, label=ends.get(k))
    left.set(xlabel="loss of an image", title="Learned weight", ylim=(0, 1))
    left.legend(fontsize=10)
    found = np.array([[row[0] for row in run.values()] for run in runs])
    mean, std = found.mean(axis=0), found.std(axis=0)
    bars.barh(list(runs[0]), mean, xerr=std, color=COLORS[1])
    bars.set(title="Test accuracy", xlim=(mean.min() - 0.05, mean.max() + 0.05))
    bars.invert_yaxis()
    save(figure, file)
