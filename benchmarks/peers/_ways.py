"""Sides that several comparisons have: steps by hand, `Engine.run`, and a cache."""

from __future__ import annotations

from _comparison import Part

AT_MOST = 1.05
TRAIN_STATES = (
    "Its state is one of Flax's TrainStates, which count steps, as mlox's problems do."
)
ARRAYS = (
    "Its state is bare arrays, which count no steps: JAX flattens them in C++, and "
    "calls functions in Python for a problem of mlox, as for a TrainState."
)
RUN = "A sample is one call, with all checks of its arguments."
CACHED = (
    "mlox again, with JAX's persistent cache: the process whose memory is measured "
    "loads the program that an earlier one has compiled."
)
VARIABLES = {
    "JAX_ENABLE_COMPILATION_CACHE": "true",
    "JAX_COMPILATION_CACHE_DIR": "{folder}",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def by_hand(module: str) -> Part:
    """Return the side of a step by hand."""
    return Part("by hand", "jax", module, at_most=AT_MOST, remark=TRAIN_STATES)


def by_hand_on_arrays(module: str) -> Part:
    """Return the side of the same step on bare arrays."""
    settings = {"bare arrays": True}
    return Part("by hand, arrays", "jax", module, settings, AT_MOST, remark=ARRAYS)


def by_run(mlox: Part) -> Part:
    """Return the side of mlox by its `Engine.run`."""
    settings = {**mlox.settings, "run": True}
    return mlox._replace(name="mlox, Engine.run", settings=settings, remark=RUN)


def from_cache(mlox: Part) -> Part:
    """Return the side of mlox with a program from JAX's persistent cache."""
    name = "mlox, from a cache"
    return mlox._replace(name=name, variables=VARIABLES, remark=CACHED)
