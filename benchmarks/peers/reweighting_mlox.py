"""mlox's side of reweighting.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from _side import Side
from peers import _reweighting, _two_levels


def build(given: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Side:
    """Build the job."""
    job, data = _reweighting.make_job(given, settings), _reweighting.data_of(given)
    return _two_levels.by_mlox(job, settings, data)
