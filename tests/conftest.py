"""Every test runs in float64, with ranks that must match and strict settings."""

import gc
import importlib
import os
import pathlib
import signal
import sys

import hypothesis
import jax
import pytest

# Most programs of the tests run once: compiling them takes longer. Read by XLA when the
# first array is made, and by the processes that tests start.
CHEAP = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jax.__version_info__ < (0, 11):  # later ones know no other emitters, nor the flag
    CHEAP += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", CHEAP)

# A cache of compiled programs for each worker, the processes that its tests start, and
# the next run: it costs a first run nothing, and saves the next one half its time. JAX
# does not write an entry at once, so that workers who share one read torn entries.
ROOT = pathlib.Path(__file__).parents[1]
CACHE = ROOT / ".pytest_cache" / "jax"
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "one")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE / WORKER)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Without that cache, for processes that may not write all of an entry, and for those on
# a mesh: on CPU (JAX 0.10) a program that is read from it has lost the order of its
# collectives, and the devices wait for each other.
UNCACHED = {"JAX_ENABLE_COMPILATION_CACHE": "false"}


# What a shell starts in the background ignores Ctrl-C, and so do the processes that it
# starts in turn.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, and no limit that a busy machine can break.
hypothesis.settings.register_profile(
    "same",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("same")


@pytest.fixture(autouse=True)
def strict_promotion():
    """Raise where dtypes are promoted implicitly; examples in docstrings may do so."""
    with jax.numpy_dtype_promotion("strict"):
        yield


def count_memory_maps():
    """Count the regions of memory that this process maps, where it is told."""
    maps = pathlib.Path("/proc/self/maps")
    return len(maps.read_bytes().splitlines()) if maps.exists() else 0


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Drop compiled programs after a file of tests that leaves many of them.

    Each one maps a few regions of memory, of which Linux grants a process 65,530: past
    that, compiling ends in a segmentation fault.
    """
    yield
    if count_memory_maps() > 10_000:
        gc.collect()
        jax.clear_caches()


# The files that take longest begin first, or one worker would be left with them.
LONG = ("processes", "sharding", "laws", "examples", "tasks", "readme", "checkpoint")


def pytest_collection_modifyitems(items):
    names = [f"test_{name}" for name in LONG]
    items.sort(key=lambda item: [*names, item.path.stem].index(item.path.stem))


@pytest.fixture(scope="module")
def programs():
    """Import files of the benchmarks, from the folder in which they find each other."""
    before, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module
    sys.path[:] = path
    folders = (str(ROOT / "benchmarks"), str(ROOT / "examples"))
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(folders):
            del sys.modules[name]
