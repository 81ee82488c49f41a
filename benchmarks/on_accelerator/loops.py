"""Memory and time of a hypergradient through some steps of Adam on a decoder.

Plain reverse mode stores every step, and inside a step what the backward pass of a
backward pass needs. mlox recomputes steps (levels), and differentiates a gradient
forward over reverse (mixed). A user's own `jax.checkpoint` recomputes the blocks of the
decoder, and Adam's update, of which else some vectors of the size of the parameters are
stored for each step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import _decoder
import jax
import numpy as np
import optax

import mlox
from on_accelerator import device
from on_accelerator.parts import Place, Row, Rows
from on_accelerator.sizes import SIZES, Sizes
from on_accelerator.tables import MIXED, PLAIN

REPEATS = 3
RECOMPUTED = optax.GradientTransformation(
    _decoder.ADAM.init, jax.checkpoint(_decoder.ADAM.update)
)
# The most important first, for the time may not suffice for all.
WAYS = {
    MIXED: (mlox.Unrolled(mixed=True), True),
    PLAIN: (mlox.Unrolled(levels=0, mixed=False), False),
    "mixed mode, steps and all in them recomputed": (
        mlox.Unrolled(levels=1, mixed=True),
        True,
    ),
    "steps and all in them recomputed": (mlox.Unrolled(levels=1, mixed=False), True),
    "mixed mode": (mlox.Unrolled(mixed=True), False),
    "steps recomputed": (mlox.Unrolled(levels=1, mixed=False), False),
}


def rows(place: Place) -> Rows:
    """Return a row for each way."""
    sizes = SIZES[place.size]
    return {name: partial(measure, *way, sizes) for name, way in WAYS.items()}


def measure(method: Any, remat: bool, sizes: Sizes) -> Row:
    """Return the memory at all steps, and the time of a step at as many as fit."""
    limit = device.statistics().get("bytes_limit", sizes.limit)
    steps, found = sizes.steps, {}
    while True:
        program, make, start = compiled(method, remat, sizes.decoder, steps)
        needs = device.needs(program)
        found = found or {**needs, "steps": steps, "limit": limit}
        if needs["bytes"] <= limit:
            break
        if steps == 1:
            return {**found, "timed": None}
        steps //= 2
    state = device.with_arrays(make, start)
    call, size = timed(program, state, _decoder.batches(sizes.decoder, steps))
    peak = device.statistics().get("peak_bytes_in_use")
    parameters = sizes.decoder.parameters
    timing = {"timed": steps, "step": call / steps, "size": size, "peak": peak}
    return {**found, **timing, "parameters": parameters}


def compiled(
    method: Any, remat: bool, shape: _decoder.Shape, steps: int
) -> tuple[Any, Callable[[], mlox.Engine], Any]:
    """Return the compiled hypergradient, how to make its engine, and its state."""
    each = partial(_decoder.losses, shape=shape, remat=remat)
    tx = RECOMPUTED if remat else _decoder.ADAM
    make = lambda: _decoder.engine(shape, method, steps, each=each, tx=tx)
    engine, start = device.without_arrays(make)
    slope = jax.jit(lambda s, b: engine.hypergradient(s, b, "weights")[1])
    return slope.lower(start, _decoder.batches(shape, steps)).compile(), make, start


def timed(program: Any, state: Any, batches: Any) -> tuple[float, float]:
    """Return the median seconds of a call after the first, and what it computes."""
    size = float(np.linalg.norm(program(state, batches)))
    if not np.isfinite(size):
        raise FloatingPointError("the hypergradient is not finite")
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        jax.block_until_ready(program(state, batches))
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds)), size
