"""Data attribution in higher: `innerloop_ctx` over a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import higher
import torch
from _side import Given, Side
from peers import _classifier_torch as classifier


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    net = classifier.network(given)
    adam = torch.optim.Adam(net.parameters(), **_named(settings["adam"]))
    training = classifier.training(given)
    v = torch.ones(len(given["x"]), requires_grad=True)

    def step(query: classifier.Batch) -> dict[str, torch.Tensor]:
        with higher.innerloop_ctx(net, adam) as (fit, optimizer):
            for batch, rows in training:
                optimizer.step((v[rows] * classifier.losses(fit, batch)).mean())
            (tau,) = torch.autograd.grad(classifier.losses(fit, query).mean(), v)
        return {"tau": tau}

    return classifier.side(step, given, "higher")


def _named(adam: Mapping[str, float]) -> dict[str, float]:
    return {"lr": adam["learning_rate"], "eps": adam["eps"]}
