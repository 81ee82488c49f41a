"""mlox's side of floors.py, and of the comparisons with jaxopt's `custom_root`."""

from __future__ import annotations

from typing import Any

from _jobs import engine
from _side import Given, Side
from peers import _steps


def build(given: Given, settings: _steps.Settings) -> Side:
    """Build the job."""
    del given
    job = _steps.make_job(settings)
    ours = engine(job, metrics=settings["metrics"])

    def read(state: Any, metrics: Any) -> Any:
        params = {name: problem.params for name, problem in state.items()}
        return params, metrics if settings["compare metrics"] else None

    return _steps.side(ours.step, ours.init(), job.batches, settings, read)
