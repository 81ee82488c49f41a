"""What the device is, and the memory that it and a compiled program have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

import mlox


def about() -> dict[str, Any]:
    """Return the card, its memory, and the versions of what drives it."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "card": device.device_kind,
        "devices": jax.device_count(),
        "bytes": statistics().get("bytes_limit"),
        "jax": jax.__version__,
        "driver": device.client.platform_version.splitlines()[-1],
    }


def statistics() -> dict[str, int]:
    """Return the allocator's figures; empty where there are none, as on a CPU."""
    return jax.devices()[0].memory_stats() or {}


def needs(program: Any) -> dict[str, int]:
    """Return the bytes of a compiled program: temporaries, and all together."""
    found = program.memory_analysis()
    whole = found.argument_size_in_bytes + found.output_size_in_bytes
    whole += found.temp_size_in_bytes - found.alias_size_in_bytes
    return {"temporaries": found.temp_size_in_bytes, "bytes": whole}


def without_arrays(make: Callable[[], mlox.Engine]) -> tuple[mlox.Engine, Any]:
    """Return an engine, and the shapes of its state: to compile without memory."""
    made: list[mlox.Engine] = []

    def init() -> Any:
        made.append(make())
        return made[0].init()

    shapes = jax.eval_shape(init)
    return made[0], shapes


def with_arrays(make: Callable[[], mlox.Engine], shapes: Any) -> Any:
    """Return the state of an engine that was made without arrays, made on the device.

    Its functions are those of `shapes`: others would be another engine's.
    """
    leaves = jax.jit(lambda: jax.tree.leaves(make().init()))()
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
