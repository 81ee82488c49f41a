"""Parameters and batches in PyTorch, from the arrays that all sides share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

Params = Mapping[str, torch.Tensor]
Batch = Sequence[torch.Tensor]


class Parameters(torch.nn.Module):
    """A module that holds arrays by their names."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        # A plain dict, which is faster to read than a ParameterDict.
        self.arrays = {
            n: torch.nn.Parameter(torch.tensor(x)) for n, x in arrays.items()
        }
        for name, parameter in self.arrays.items():
            self.register_parameter(name, parameter)

    def values(self) -> dict[str, np.ndarray]:
        """Return the arrays as they are now."""
        return {
            name: array.detach().cpu().numpy().copy()
            for name, array in self.arrays.items()
        }


def list_batches(parts: Mapping[str, np.ndarray]) -> list[Batch]:
    """List the batches (x, y) of arrays [batches, ...]."""
    x, y = torch.tensor(parts["x"]), torch.tensor(parts["y"])
    y = y if y.is_floating_point() else y.long()  # PyTorch takes no int32 labels
    return list(zip(x, y, strict=True))
