"""Long loops in TorchOpt: a differentiable optimizer, `backward` through its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torchopt
from _side import Given, Side
from peers import _long_torch as long


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    net, weights = long.network(given), long.start(given)
    rate = settings["rate"]
    inner = (
        torchopt.MetaAdam(net, lr=rate, eps_root=1e-16)
        if settings["adam"]
        else torchopt.MetaSGD(net, lr=rate)
    )
    outer = torch.optim.SGD([weights], lr=settings["upper_rate"])
    losses, true_loss = list(long.fit_losses(given, weights)), long.true_loss(given)

    def step() -> None:
        # The start of a window is a constant.
        torchopt.stop_gradient(net)
        torchopt.stop_gradient(inner)
        for loss in losses:
            inner.step(loss(net))
        outer.zero_grad()
        true_loss(net).backward()
        outer.step()

    return long.side(step, weights, "torchopt")
