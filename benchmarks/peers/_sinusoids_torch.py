"""The network and the points of sinusoids in torch, and a side made of a step."""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
from collections.abc import Callable

import numpy as np
import torch
from _side import Given, Side
from peers._layers_torch import layers

Points = tuple[torch.Tensor, torch.Tensor]
Batch = tuple[Points, Points]


network = functools.partial(layers, between=torch.nn.ReLU)


def error(found: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((found - y) ** 2).mean()


def batches(given: Given) -> list[Batch]:
    """Return all batches: the points to learn from, and those that judge."""

    def points(part: str) -> list[Points]:
        x, y = torch.tensor(given[f"{part}_x"]), torch.tensor(given[f"{part}_y"])
        return list(zip(x, y, strict=True))

    return list(zip(points("support"), points("query"), strict=True))


def tasks(points: Points) -> list[Points]:
    """Return the points of each task."""
    return list(zip(*points, strict=True))


def side(
    step: Callable[[Batch], None],
    given: Given,
    layers: list[torch.nn.Linear],
    library: str,
) -> Side:
    """Return the side that a step makes, which takes the batches in turn."""
    upcoming = itertools.cycle(batches(given))

    def advance(steps: int) -> None:
        for batch in itertools.islice(upcoming, steps):
            step(batch)

    def outcome() -> dict[str, np.ndarray]:
        found = {}
        for i, layer in enumerate(layers):
            found[f"weights{i}"] = layer.weight.detach().numpy().T
            found[f"bias{i}"] = layer.bias.detach().numpy()
        return found

    names = "torch", library
    return Side(advance, outcome, {n: importlib.metadata.version(n) for n in names})
