"""The side of gradients.py in PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from _side import Side
from peers import _reweighting_torch
from peers._given import part_of
from peers._parameters_torch import Parameters, list_batches


def build(given: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Side:
    """Build the step, on one thread."""
    torch.set_num_threads(1)
    each = _reweighting_torch.losses(settings["model"])
    given = _reweighting_torch.lay_out(given, settings["model"])
    state = Parameters(part_of(given, "lower params/"))
    optimizer = torch.optim.SGD(state.parameters(), lr=settings["rate"])
    data = list_batches(part_of(given, "upper batches/"))
    upcoming = itertools.cycle(data)

    def advance(steps: int) -> None:
        for batch in itertools.islice(upcoming, steps):
            optimizer.zero_grad()
            each(state.arrays, batch).mean().backward()
            optimizer.step()

    def outcome() -> dict[str, np.ndarray]:
        return {"losses": each(state.arrays, data[0]).detach().numpy()}

    return Side(advance, outcome, {"PyTorch": torch.__version__})
