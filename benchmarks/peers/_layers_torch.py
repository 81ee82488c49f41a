"""Networks of dense layers in PyTorch, from the weights that all sides share."""

from __future__ import annotations

import torch
from _side import Given


def layers(given: Given, between: type[torch.nn.Module]) -> torch.nn.Sequential:
    """Return the network with the first weights, and a function between its layers."""
    parts: list[torch.nn.Module] = []
    for i in range(sum(name.startswith("bias") for name in given)):
        weights, bias = given[f"weights{i}"], given[f"bias{i}"]
        layer = torch.nn.Linear(*weights.shape, dtype=torch.tensor(weights).dtype)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weights.T))
            layer.bias.copy_(torch.tensor(bias))
        parts += [layer, between()]
    return torch.nn.Sequential(*parts[:-1])
