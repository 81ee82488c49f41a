"""Data attribution in TorchOpt: a `MetaAdam` that starts anew for each query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torchopt
from _side import Given, Side
from peers import _classifier_torch as classifier


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    net = classifier.network(given)
    rate, eps = settings["adam"]["learning_rate"], settings["adam"]["eps"]
    optimizer = torchopt.MetaAdam(net, rate, eps=eps, eps_root=settings["eps_root"])
    training = classifier.training(given)
    v = torch.ones(len(given["x"]), requires_grad=True)
    start = [torchopt.extract_state_dict(x, by="reference") for x in (net, optimizer)]

    def step(query: classifier.Batch) -> dict[str, torch.Tensor]:
        for batch, rows in training:
            optimizer.step((v[rows] * classifier.losses(net, batch)).mean())
        (tau,) = torch.autograd.grad(classifier.losses(net, query).mean(), v)
        for part, first in zip((net, optimizer), start, strict=True):
            torchopt.recover_state_dict(part, first)
        return {"tau": tau}

    return classifier.side(step, given, "torchopt")
