"""jaxopt's `custom_root` on the jobs of implicit.py, with the steps of the lower."""

from __future__ import annotations

from typing import Any

import _by_hand
import _jaxopt_side
from _side import Given, Side
from peers import _steps


def build(given: Given, settings: _steps.Settings) -> Side:
    """Build the job."""
    del given
    job = _steps.make_job(settings)

    def read(state: Any, metrics: Any) -> Any:
        del metrics
        return {name: state[name] for name in ("lower", "upper")}, None

    step, state = _jaxopt_side.step(job), _by_hand.state(job)
    return _steps.side(step, state, job.batches, settings, read, "jaxopt")
