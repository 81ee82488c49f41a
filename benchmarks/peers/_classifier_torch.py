"""The classifier in torch, and a side made of a step."""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
from collections.abc import Callable

import numpy as np
import torch
from _side import Given, Side
from peers._layers_torch import layers

Batch = tuple[torch.Tensor, torch.Tensor]


network = functools.partial(layers, between=torch.nn.Tanh)


def losses(net: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return the loss of each example of a batch."""
    x, y = batch
    return torch.nn.functional.cross_entropy(net(x), y, reduction="none")


def training(given: Given) -> list[tuple[Batch, torch.Tensor]]:
    """Return the batches of a training, and which examples they are."""
    x, y = torch.tensor(given["x"]), torch.tensor(given["y"])
    return [((x[rows], y[rows]), rows) for rows in torch.tensor(given["order"])]


def side(
    step: Callable[[Batch], dict[str, torch.Tensor]], given: Given, library: str
) -> Side:
    """Return the side of a step from a batch that judges to the arrays to compare."""
    x, y = torch.tensor(given["query_x"]), torch.tensor(given["query_y"])
    upcoming = itertools.cycle(zip(x, y, strict=True))
    found: dict[str, torch.Tensor] = {}

    def advance(steps: int) -> None:
        for batch in itertools.islice(upcoming, steps):
            found.update(step(batch))

    def outcome() -> dict[str, np.ndarray]:
        return {name: array.detach().numpy() for name, array in found.items()}

    names = "torch", library
    return Side(advance, outcome, {n: importlib.metadata.version(n) for n in names})
