"""Long loops in higher: an `innerloop_ctx`, and `backward` through its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import higher
import torch
from _side import Given, Side
from peers import _long_torch as long


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    net, weights = long.network(given), long.start(given)
    inner = torch.optim.SGD(net.parameters(), lr=settings["rate"])
    outer = torch.optim.SGD([weights], lr=settings["upper_rate"])
    losses, true_loss = list(long.fit_losses(given, weights)), long.true_loss(given)

    def step() -> None:
        outer.zero_grad()
        with higher.innerloop_ctx(net, inner) as (fit, optimizer):
            for loss in losses:
                optimizer.step(loss(fit))
            true_loss(fit).backward()
        outer.step()
        # The next window goes on from where this one has ended.
        with torch.no_grad():
            for mine, found in zip(net.parameters(), fit.parameters(), strict=True):
                mine.copy_(found)

    return long.side(step, weights, "higher")
