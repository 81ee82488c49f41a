"""Two moons, a network of points of the plane, and a picture of its decisions."""

from typing import Any

import flax.linen as nn
import numpy as np
from _picture import COLORS, panels, save
from sklearn.datasets import make_moons

network = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(2)])


def load(seed: int) -> Any:
    """Return the points of two moons, and to which of the two each one belongs."""
    points, moons = make_moons(2000, noise=0.1, random_state=seed)
    return np.asarray(points, np.float32), np.asarray(moons, np.int32)


def accuracy(params: Any, pair: Any) -> float:
    logits: Any = network.apply(params, pair[0])
    return float((logits.argmax(axis=1) == pair[1]).mean())


def draw_sides(found: dict[str, Any], few: Any, test: Any, file: str) -> None:
    """Draw what the labels alone and the teacher decide, and the labelled points."""
    figure, panes = panels(1, 2, sharex=True, sharey=True)
    x, y = np.meshgrid(np.linspace(-1.5, 2.5, 80), np.linspace(-1, 1.5, 80))
    plane = np.stack([x, y], axis=-1).astype(np.float32)
    for axes, name in zip(panes, ("labels alone", "teacher"), strict=True):
        logits: Any = network.apply(found[name], plane)
        side = np.asarray(logits[..., 1] - logits[..., 0])
        axes.contourf(x, y, side, [-1e9, 0, 1e9], colors=COLORS[:2], alpha=0.25)
        for k in (0, 1):
            axes.plot(*test[0][test[1] == k][:300].T, ".", ms=2, color=COLORS[k])
            axes.plot(*few[0][few[1] == k].T, "o", ms=9, mec="k", color=COLORS[k])
        axes.set_title(f"{name}: {accuracy(found[name], test):.3f}")
    save(figure, file)
