"""The hand-written side of floors.py.

Its state is one of Flax's TrainStates, which count their steps as mlox's problems do,
or of bare arrays.
"""

from __future__ import annotations

from typing import Any

import _by_hand
from _side import Given, Side
from peers import _steps


def build(given: Given, settings: _steps.Settings) -> Side:
    """Build the job."""
    del given
    job = _steps.make_job(settings)
    losses = settings["metrics"] == "all"
    bare = settings.get("bare arrays", False)
    make = _by_hand.step if bare else _by_hand.train_state_step
    start = _by_hand.state(job) if bare else _by_hand.train_states(job)

    def read(state: Any, metrics: Any) -> Any:
        of = lambda name: state[name] if bare else state[name].params
        params = {name: of(name) for name in ("lower", "upper")}
        return params, metrics if settings["compare metrics"] else None

    return _steps.side(make(job, losses=losses), start, job.batches, settings, read)
