"""MAML in TorchOpt, as its documentation has it: a loop over tasks with `MetaSGD`.

With "vmap" in its settings, the functional optimizer under `torch.func.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchopt
from _side import Given, Side
from peers import _sinusoids_torch as sinusoids


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    net = sinusoids.network(given)
    outer = torch.optim.Adam(net.parameters(), lr=settings["outer_rate"])
    make = vmapped if settings.get("vmap") else looped
    loss = make(net, settings)

    def step(batch: sinusoids.Batch) -> None:
        outer.zero_grad()
        loss(batch).backward()
        outer.step()

    layers = [part for part in net if isinstance(part, torch.nn.Linear)]
    return sinusoids.side(step, given, layers, "torchopt")


def looped(
    net: torch.nn.Module, settings: Mapping[str, Any]
) -> Callable[[sinusoids.Batch], torch.Tensor]:
    """Return the mean loss over tasks, one after the other."""
    inner = torchopt.MetaSGD(net, lr=settings["inner_rate"])

    def loss(batch: sinusoids.Batch) -> torch.Tensor:
        support, query = map(sinusoids.tasks, batch)
        start = torchopt.extract_state_dict(net)
        fresh = torchopt.extract_state_dict(inner)
        losses = []
        for (x, y), (x_query, y_query) in zip(support, query, strict=True):
            for _ in range(settings["inner_steps"]):
                inner.step(sinusoids.error(net(x), y))
            losses.append(sinusoids.error(net(x_query), y_query))
            torchopt.recover_state_dict(net, start)
            torchopt.recover_state_dict(inner, fresh)
        return torch.stack(losses).mean()

    return loss


def vmapped(
    net: torch.nn.Module, settings: Mapping[str, Any]
) -> Callable[[sinusoids.Batch], torch.Tensor]:
    """Return the mean loss over tasks, all of them at once."""
    inner = torchopt.sgd(lr=settings["inner_rate"])

    def error(
        params: Mapping[str, torch.Tensor], points: sinusoids.Points
    ) -> torch.Tensor:
        x, y = points
        return sinusoids.error(torch.func.functional_call(net, params, x), y)

    def adapted(
        params: dict[str, torch.Tensor],
        support: sinusoids.Points,
        query: sinusoids.Points,
    ) -> torch.Tensor:
        state = inner.init(params)
        for _ in range(settings["inner_steps"]):
            grads = torch.func.grad(error)(params, support)
            updates, state = inner.update(grads, state, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return error(params, query)

    each = torch.func.vmap(adapted, (None, 0, 0))
    return lambda batch: each(dict(net.named_parameters()), *batch).mean()
