"""Betty's side of against_betty.py; needs PyTorch and betty-ml 0.2.1, and not mlox.

`python _betty_side.py given.npz found.npz` reads the settings, the initial parameters
and the batches of one job, lets Betty's own engine run it, and writes the parameters of
the upper problem, and seconds per upper step. The losses are those of _jobs.py.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import betty
import numpy as np
import torch
from betty.configs import Config, EngineConfig
from betty.engine import Engine
from betty.problems import ImplicitProblem
from torch.nn import functional

Batch = tuple[torch.Tensor, torch.Tensor]
Leaves = Sequence[torch.Tensor]
Loss = Callable[[Leaves, Leaves, Batch], torch.Tensor]


class Parameters(torch.nn.Module):
    """A module that holds the leaves of a pytree, in their order."""

    def __init__(self, leaves: Sequence[np.ndarray]) -> None:
        super().__init__()
        self.leaves = torch.nn.ParameterList(
            [torch.nn.Parameter(torch.tensor(leaf)) for leaf in leaves]
        )


class Written(ImplicitProblem):
    """A problem whose loss is passed as `extra_config`, which Betty keeps as `cfg`."""

    def training_step(self, batch: Batch) -> torch.Tensor:
        """Evaluate the loss; Betty makes the neighbours attributes by their names."""
        lower, upper = getattr(self, "lower", self), getattr(self, "upper", self)
        return self.cfg(lower.module.leaves, upper.module.leaves, batch)


def losses(job: str, prior: float) -> tuple[Loss, Loss]:
    """Return the losses of the lower and of the upper problem."""

    def logistic(lower: Leaves, batch: Batch) -> torch.Tensor:
        x, y = batch
        return functional.softplus(-y * (x @ lower[0])).mean()

    def penalized(lower: Leaves, upper: Leaves, batch: Batch) -> torch.Tensor:
        penalty = 0.5 * (torch.exp(upper[0]) * lower[0] ** 2).sum()
        return logistic(lower, batch) + penalty

    def each(lower: Leaves, batch: Batch) -> torch.Tensor:
        x, label = batch
        return functional.cross_entropy(dense(lower, x), label, reduction="none")

    def weighted(lower: Leaves, upper: Leaves, batch: Batch) -> torch.Tensor:
        found = each(lower, batch)
        weight = torch.sigmoid(dense(upper, found.detach()[:, None])[:, 0])
        return (weight * found).mean()

    below, fit = {
        "logistic": (penalized, logistic),
        "MLP": (weighted, lambda lower, batch: each(lower, batch).mean()),
    }[job]

    def above(lower: Leaves, upper: Leaves, batch: Batch) -> torch.Tensor:
        return fit(lower, batch) + prior * sum((leaf**2).sum() for leaf in upper)

    return below, above


def dense(leaves: Leaves, x: torch.Tensor) -> torch.Tensor:
    """Apply layers (matrix, bias), with rectifiers between them."""
    for i in range(0, len(leaves), 2):
        x = (functional.relu(x) if i else x) @ leaves[i] + leaves[i + 1]
    return x


def build(given: Mapping[str, Any], upper_steps: int) -> Engine:
    """Make an engine that runs this number of steps of the upper problem."""
    settings = json.loads(str(given["settings"]))
    below, above = losses(settings["job"], settings["prior"])

    def problem(name: str, loss: Loss, **config: Any) -> ImplicitProblem:
        count = sum(key.startswith(f"{name}_leaf") for key in given)
        module = Parameters([given[f"{name}_leaf{i}"] for i in range(count)])
        x, y = (torch.tensor(given[f"{name}_batch{i}"]) for i in range(2))
        y = y if y.is_floating_point() else y.long()  # PyTorch takes no int32 labels
        rate = settings[f"{name}_rate"]
        return Written(
            name=name,
            config=Config(log_step=-1, **config),
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=rate),
            train_data_loader=list(zip(x, y, strict=True)),
            extra_config=loss,
        )

    unroll = settings["unroll"]
    # Betty differentiates the upper's loss twice, so that its graph must be kept.
    upper = problem("upper", above, retain_graph=True)
    lower = problem("lower", below, unroll_steps=unroll, **settings["config"])
    return Engine(
        problems=[upper, lower],
        config=EngineConfig(
            train_iters=upper_steps * unroll, logger_type="none", strategy="cpu"
        ),
        dependencies={"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
    )


def trained(engine: Engine) -> dict[str, np.ndarray]:
    """Run the engine, and return the parameters of the upper problem."""
    engine.run()
    leaves = engine.upper.module.leaves
    return {f"upper_leaf{i}": leaf.detach().numpy() for i, leaf in enumerate(leaves)}


def timed(given: Mapping[str, Any], upper_steps: int) -> float:
    """Return seconds per upper step, of a run from the start."""
    engine = build(given, upper_steps)
    start = time.perf_counter()
    engine.run()
    return (time.perf_counter() - start) / upper_steps


def main() -> None:
    logging.disable(logging.INFO)  # Betty says when a run is finished.
    given = dict(np.load(sys.argv[1]))
    steps, rounds, length = (int(n) for n in given["amounts"])
    np.savez(
        sys.argv[2],
        **trained(build(given, steps)),
        seconds=[timed(given, length) for _ in range(rounds)],
        about=f"PyTorch {torch.__version__} ({torch.get_num_threads()} threads), "
        f"Betty {betty.__version__}",
    )


if __name__ == "__main__":
    main()
