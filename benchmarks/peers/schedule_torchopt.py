"""A learned schedule in TorchOpt: the rate of `MetaSGD` is a function of the count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torchopt
from _side import Given, Side
from peers import _classifier_torch as classifier


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    net, training = classifier.network(given), classifier.training(given)
    first = torch.full((len(training),), math.log(settings["first rate"]))
    log_rates = first.requires_grad_()
    inner = torchopt.MetaSGD(
        net, lambda count: log_rates[count].exp(), momentum=settings["momentum"]
    )
    outer = torch.optim.Adam([log_rates], settings["outer rate"])
    start = [torchopt.extract_state_dict(x, by="reference") for x in (net, inner)]

    def step(query: classifier.Batch) -> dict[str, torch.Tensor]:
        for batch, _ in training:
            inner.step(classifier.losses(net, batch).mean())
        cost = classifier.losses(net, query).mean()
        (log_rates.grad,) = torch.autograd.grad(cost, log_rates)
        outer.step()
        for part, state in zip((net, inner), start, strict=True):
            torchopt.recover_state_dict(part, state)
        return {"log_rates": log_rates}

    return classifier.side(step, given, "torchopt")
