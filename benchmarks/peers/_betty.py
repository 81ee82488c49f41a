"""Any job of two levels in Betty 0.2.1 (PyTorch), run by its own engine.

Betty's fastest settings that give the right numbers: strategy "cpu", no logger, no
logging steps, one thread, and batches that lie in memory as tensors. (SGD is not faster
with foreach or fused.) The upper retains its graph, because Betty differentiates its
loss twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import betty
import numpy as np
import torch
from _side import Side
from betty.configs import Config, EngineConfig
from betty.engine import Engine
from betty.problems import ImplicitProblem
from peers._given import part_of
from peers._parameters_torch import Batch, Parameters, Params, list_batches

Loss = Callable[[Params, Params, Batch], torch.Tensor]


class Written(ImplicitProblem):
    """A problem whose loss is passed as `extra_config`, which Betty keeps as `cfg`."""

    def training_step(self, batch: Batch) -> torch.Tensor:
        """Evaluate the loss; Betty makes the neighbours attributes by their names."""
        lower, upper = getattr(self, "lower", self), getattr(self, "upper", self)
        return self.cfg(lower.module.arrays, upper.module.arrays, batch)


def build(
    given: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    lower_loss: Loss,
    upper_loss: Loss,
) -> Side:
    """Build the side of a job, given its losses."""
    logging.disable(logging.INFO)  # Betty says when a run is finished.
    torch.set_num_threads(1)

    def problem(name: str, loss: Loss, **config: Any) -> ImplicitProblem:
        module = Parameters(part_of(given, f"{name} params/"))
        rate = settings[f"{name} rate"]
        return Written(
            name=name,
            config=Config(log_step=-1, **config),
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=rate),
            train_data_loader=list_batches(part_of(given, f"{name} batches/")),
            extra_config=loss,
        )

    unroll = settings["unroll"]
    upper = problem("upper", upper_loss, retain_graph=True)
    lower = problem("lower", lower_loss, unroll_steps=unroll, **settings["betty"])
    engine = Engine(
        problems=[upper, lower],
        config=EngineConfig(
            logger_type="none", strategy=settings.get("strategy", "cpu")
        ),
        dependencies={"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
    )

    def advance(steps: int) -> None:
        engine.train_iters = steps * unroll
        engine.run()

    about = {"PyTorch": torch.__version__, "Betty": betty.__version__}
    return Side(advance, upper.module.values, about)
