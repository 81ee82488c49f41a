"""A side whose program another process has compiled, and left in JAX's cache."""

from __future__ import annotations

from _comparison import Part

VARIABLES = {
    "JAX_COMPILATION_CACHE_DIR": "{folder}",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def cached(part: Part) -> Part:
    """Return a side with the cache, of which only the memory is another one's."""
    return part._replace(
        name=f"{part.name}, from a cache",
        variables=VARIABLES,
        remark="its memory is that of a process that loads the compiled program",
    )
