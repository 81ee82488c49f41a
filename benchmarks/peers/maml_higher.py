"""MAML in higher: a loop over tasks, each in an `innerloop_ctx`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import higher
import torch
from _side import Given, Side
from peers import _sinusoids_torch as sinusoids


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    net = sinusoids.network(given)
    inner = torch.optim.SGD(net.parameters(), lr=settings["inner_rate"])
    outer = torch.optim.Adam(net.parameters(), lr=settings["outer_rate"])

    def step(batch: sinusoids.Batch) -> None:
        support, query = map(sinusoids.tasks, batch)
        outer.zero_grad()
        for (x, y), (x_query, y_query) in zip(support, query, strict=True):
            context = higher.innerloop_ctx(net, inner, copy_initial_weights=False)
            with context as (fit, optimizer):
                for _ in range(settings["inner_steps"]):
                    optimizer.step(sinusoids.error(fit(x), y))
                loss = sinusoids.error(fit(x_query), y_query)
                (loss / len(support)).backward()
        outer.step()

    layers = [part for part in net if isinstance(part, torch.nn.Linear)]
    return sinusoids.side(step, given, layers, "higher")
