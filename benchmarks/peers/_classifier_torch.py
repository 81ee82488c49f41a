"""The classifier in torch, and a side made of a step."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Callable

import numpy as np
import torch
from _side import Given, Side

Batch = tuple[torch.Tensor, torch.Tensor]


def network(given: Given) -> torch.nn.Sequential:
    """Return the network with the first weights."""
    parts: list[torch.nn.Module] = []
    for i in range(sum(name.startswith("bias") for name in given)):
        weights, bias = given[f"weights{i}"], given[f"bias{i}"]
        layer = torch.nn.Linear(*weights.shape, dtype=torch.tensor(weights).dtype)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weights.T))
            layer.bias.copy_(torch.tensor(bias))
        parts += [layer, torch.nn.Tanh()]
    return torch.nn.Sequential(*parts[:-1])


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
