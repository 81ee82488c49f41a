"""What the sides of floors.py and implicit.py share: jobs by name, and compiled steps.

All sides take the same batches in every cycle, so they start from what `_jobs` makes.
Penalties are learned by slow gradient descent: in the ten thousands of cycles that are
timed Adam would drive those of useless features until they overflow.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

import _jobs
import _timing
import jax
import numpy as np
import optax
from _side import Side

import mlox

PyTree = Any
Settings = Mapping[str, Any]


def logistic(*given: Any, **sizes: Any) -> _jobs.Job:
    """Make the logistic job, with slow gradient descent for the penalties."""
    job = _jobs.logistic(*given, **sizes)
    return dataclasses.replace(job, upper_tx=optax.sgd(0.01))


NETWORKS = {"logistic": logistic, "MLP": _jobs.mlp, "CNN": _jobs.cnn}
METHODS = {
    "DARTS": mlox.FiniteDifference,
    "CG": lambda **given: mlox.Implicit(mlox.CG(**given)),
    "Neumann": lambda **given: mlox.Implicit(mlox.Neumann(**given)),
}


def make_job(settings: Settings) -> _jobs.Job:
    """Make the job that the settings name."""
    method = METHODS[settings["method"]](**settings["solver"])
    network = NETWORKS[settings["network"]]
    return network(settings["unroll"], method, **settings["sizes"])


def side(
    step: _timing.Step,
    state: PyTree,
    batches: PyTree,
    settings: Settings,
    read: Callable[[PyTree, PyTree], PyTree],
    *libraries: str,
) -> Side:
    """Compile a step, alone or many times in one program, and make a side of it.

    Args:
        step: (state, batches) -> (state, metrics).
        state: Where it starts; its buffers are given away.
        batches: Those of every step.
        settings: "dispatch" is the number of steps in a program.
        read: (state, metrics) -> what the sides are compared by.
        libraries: Whose versions are told, beside those of JAX and mlox.
    """
    dispatch = settings["dispatch"]
    once = _timing.compiled(step, state, batches)
    program, metrics = once.program, None
    if dispatch > 1:
        many = _timing.many(step, dispatch)
        program = _timing.compiled(many, state, batches).program

    def advance(steps: int) -> None:
        nonlocal state, metrics
        if steps % dispatch:
            raise ValueError(f"{steps} steps are no multiple of {dispatch}")
        for _ in range(steps // dispatch):
            state, metrics = program(state, batches)
        jax.block_until_ready((state, metrics))

    def outcome() -> dict[str, np.ndarray]:
        found = jax.tree_util.tree_leaves_with_path(read(state, metrics))
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}

    return Side(
        advance=advance,
        outcome=outcome,
        about={
            "JAX": jax.__version__,
            "mlox": mlox.__version__,
            **{name: importlib.metadata.version(name) for name in libraries},
        },
        facts=once.facts,
    )
