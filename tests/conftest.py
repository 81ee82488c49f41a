"""Every test runs in float64, with ranks that must match and strict settings."""

import os

import jax

# Most programs of the tests run once: compiling them takes longer. Read by XLA when the
# first array is made, and by the processes that tests start.
CHEAP = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ.setdefault("XLA_FLAGS", CHEAP)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The files that take longest begin first, or one worker would be left with them.
LONG = ("processes", "laws", "examples", "sharding", "tasks", "readme", "checkpoint")


def pytest_collection_modifyitems(items):
    names = [f"test_{name}" for name in LONG]
    items.sort(key=lambda item: [*names, item.path.stem].index(item.path.stem))
