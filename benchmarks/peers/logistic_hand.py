"""The hand-written side of logistic.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from _side import Side
from peers import _logistic, _two_levels


def build(given: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Side:
    """Build the job."""
    return _two_levels.by_hand(_logistic.make_job(given, settings), settings, None)
