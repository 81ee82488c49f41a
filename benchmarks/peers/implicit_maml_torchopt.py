"""Implicit MAML in TorchOpt: an `ImplicitMetaGradientModule` for each task.

As in its example of implicit MAML: modules that are made once, start anew at the
meta-parameters in each upper step, and solve one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torchopt
from _side import Given, Side
from peers import _sinusoids_torch as sinusoids


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    meta = sinusoids.network(given)
    outer = torch.optim.Adam(meta.parameters(), lr=settings["outer_rate"])
    fits = [_make(settings)(meta) for _ in range(settings["tasks"])]

    def step(batch: sinusoids.Batch) -> None:
        support, query = map(sinusoids.tasks, batch)
        losses = []
        for fit, (x, y), (x_query, y_query) in zip(fits, support, query, strict=True):
            fit.reset()
            fit.solve(x, y)
            losses.append(sinusoids.error(fit.net(x_query), y_query))
        outer.zero_grad()
        torch.stack(losses).mean().backward()
        outer.step()

    layers = [part for part in meta if isinstance(part, torch.nn.Linear)]
    return sinusoids.side(step, given, layers, "torchopt")


def _make(settings: Mapping[str, Any]) -> type[torch.nn.Module]:
    solver = torchopt.linear_solve.solve_cg(maxiter=settings["products"], rtol=0.0)

    class Fit(torchopt.nn.ImplicitMetaGradientModule, linear_solve=solver):
        def __init__(self, meta: torch.nn.Module) -> None:
            super().__init__()
            self.meta = meta
            self.net = torchopt.module_clone(meta, by="deepcopy", detach_buffers=True)

        def reset(self) -> None:
            with torch.no_grad():
                for mine, start in self._pairs():
                    mine.copy_(start)
                    mine.detach_().requires_grad_()

        def objective(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            pull = sum(((mine - start) ** 2).sum() for mine, start in self._pairs())
            return sinusoids.error(self.net(x), y) + 0.5 * settings["strength"] * pull

        def solve(self, x: torch.Tensor, y: torch.Tensor) -> None:
            params = tuple(self.parameters())
            optimizer = torch.optim.SGD(params, lr=settings["inner_rate"])
            with torch.enable_grad():
                for _ in range(settings["inner_steps"]):
                    optimizer.zero_grad()
                    self.objective(x, y).backward(inputs=params)
                    optimizer.step()

        def _pairs(self) -> Any:
            return zip(self.net.parameters(), self.meta.parameters(), strict=True)

    return Fit
