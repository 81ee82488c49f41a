"""Betty's side of reweighting.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from _side import Side
from peers import _betty, _reweighting_torch
from peers._parameters_torch import Batch, Params


def build(given: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Side:
    """Build the job with the model of the settings."""
    each = _reweighting_torch.losses(settings["model"])

    def lower_loss(lower: Params, upper: Params, batch: Batch) -> torch.Tensor:
        found = each(lower, batch)
        weight = torch.sigmoid(
            _reweighting_torch.dense(upper, found.detach()[:, None])[:, 0]
        )
        return (weight * found).mean()

    def upper_loss(lower: Params, upper: Params, batch: Batch) -> torch.Tensor:
        return each(lower, batch).mean()

    given = _reweighting_torch.lay_out(given, settings["model"])
    return _betty.build(given, settings, lower_loss, upper_loss)
