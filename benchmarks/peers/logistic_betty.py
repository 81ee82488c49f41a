"""Betty's side of logistic.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from _side import Side
from peers import _betty
from peers._parameters_torch import Batch, Params
from torch.nn import functional


def build(given: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Side:
    """Build the job; all rows are one batch."""

    def fit(lower: Params, batch: Batch) -> torch.Tensor:
        x, y = batch
        return functional.softplus(-y * (x @ lower["w"])).mean()

    def lower_loss(lower: Params, upper: Params, batch: Batch) -> torch.Tensor:
        penalty = 0.5 * (torch.exp(upper["penalty"]) * lower["w"] ** 2).sum()
        return fit(lower, batch) + penalty

    def upper_loss(lower: Params, upper: Params, batch: Batch) -> torch.Tensor:
        return fit(lower, batch) + settings["prior"] * (upper["penalty"] ** 2).sum()

    return _betty.build(given, settings, lower_loss, upper_loss)
