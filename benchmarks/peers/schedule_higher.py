"""A learned schedule in higher: each step overrides the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import higher
import torch
from _side import Given, Side
from peers import _classifier_torch as classifier


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    net, training = classifier.network(given), classifier.training(given)
    first = torch.full((len(training),), math.log(settings["first rate"]))
    log_rates = first.requires_grad_()
    inner = torch.optim.SGD(net.parameters(), 1.0, momentum=settings["momentum"])
    outer = torch.optim.Adam([log_rates], settings["outer rate"])

    def step(query: classifier.Batch) -> dict[str, torch.Tensor]:
        with higher.innerloop_ctx(net, inner) as (fit, optimizer):
            for rate, (batch, _) in zip(log_rates.exp(), training, strict=True):
                loss = classifier.losses(fit, batch).mean()
                optimizer.step(loss, override={"lr": [rate]})
            cost = classifier.losses(fit, query).mean()
            (log_rates.grad,) = torch.autograd.grad(cost, log_rates)
        outer.step()
        return {"log_rates": log_rates}

    return classifier.side(step, given, "higher")
