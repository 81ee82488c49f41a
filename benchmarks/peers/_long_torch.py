"""The network of the long loops in torch, and a side made of a step."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator

import numpy as np
import torch
from _side import Given, Side
from peers import _long


def network(given: Given) -> torch.nn.Sequential:
    """Return the network with the first parameters."""
    parts: list[torch.nn.Module] = []
    for i in range(len(_long.SIZES) - 1):
        layer = torch.nn.Linear(*given[f"matrix{i}"].shape)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(given[f"matrix{i}"].T))
            layer.bias.copy_(torch.tensor(given[f"bias{i}"]))
        parts += [layer, torch.nn.Tanh()]
    return torch.nn.Sequential(*parts[:-1])


def start(given: Given) -> torch.Tensor:
    """Return the first weights of the examples."""
    return torch.zeros(_long.EXAMPLES, requires_grad=True)


Loss = Callable[[torch.nn.Module], torch.Tensor]


def fit_losses(given: Given, weights: torch.Tensor) -> Iterator[Loss]:
    """Yield the loss of each step, as a function of the network."""
    data = (torch.tensor(given[name]) for name in ("x", "label", "index"))
    for x, label, index in zip(*data, strict=True):

        def loss(
            net: torch.nn.Module,
            x: torch.Tensor = x,
            label: torch.Tensor = label,
            index: torch.Tensor = index,
        ) -> torch.Tensor:
            each = torch.nn.functional.cross_entropy(net(x), label, reduction="none")
            return (torch.sigmoid(weights[index]) * each).mean()

        yield loss


def true_loss(given: Given) -> Loss:
    x, label = torch.tensor(given["true_x"]), torch.tensor(given["true_label"])
    return lambda net: torch.nn.functional.cross_entropy(net(x), label)


def side(step: Callable[[], None], weights: torch.Tensor, library: str) -> Side:
    """Return the side that an upper step makes."""

    def advance(steps: int) -> None:
        for _ in range(steps):
            step()

    def outcome() -> dict[str, np.ndarray]:
        return {"weights": weights.detach().numpy().copy()}

    names = "torch", library
    return Side(advance, outcome, {n: importlib.metadata.version(n) for n in names})
