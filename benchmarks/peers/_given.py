"""The arrays that all sides of a comparison start from, by their names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def part_of(given: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): x for k, x in given.items() if k.startswith(prefix)}
