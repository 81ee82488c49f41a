"""The largest decoder for which one cycle of each method fits on the device.

The memory of a program with a loop over blocks is a constant and a multiple of their
number: two small programs tell both, and the compiler's own figure for the largest
that should fit confirms it, before it is run.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import _decoder
import jax
import numpy as np

import mlox
from on_accelerator import device
from on_accelerator.parts import Place, Row, Rows
from on_accelerator.sizes import SIZES, Sizes

STEPS = 2
FIRST, SECOND = 2, 6
# Where every buffer fits, their places still leave gaps; a device that has run short
# once is given less.
SHARES = (0.97, 0.9, 0.8)
METHODS = {
    "Unrolled(mixed=True)": mlox.Unrolled(mixed=True),
    "Unrolled(levels=1)": mlox.Unrolled(levels=1, mixed=False),
    "FiniteDifference()": mlox.FiniteDifference(),
    "SAMA()": mlox.SAMA(),
    "Implicit(CG(5))": mlox.Implicit(mlox.CG(5, damping=1.0)),
    "Implicit(Neumann(5))": mlox.Implicit(mlox.Neumann(5, step=0.1)),
    "Implicit(GMRES(5))": mlox.Implicit(mlox.GMRES(5)),
}


def rows(place: Place) -> Rows:
    """Return a row for each method."""
    sizes = SIZES[place.size]
    return {name: partial(search, method, sizes) for name, method in METHODS.items()}


def search(method: Any, sizes: Sizes) -> Row:
    """Return the largest number of blocks that runs, and its parameters."""
    limit = device.statistics().get("bytes_limit", sizes.limit)
    first, second = (bytes_of(method, sizes, deep) for deep in (FIRST, SECOND))
    each = (second - first) / (SECOND - FIRST)
    for share in SHARES:
        deep = int(FIRST + (share * limit - first) / each)
        if deep < 1:
            raise MemoryError(f"a block takes {first} of {limit} bytes")
        deep = min(deep, sizes.most)
        try:
            found = run(method, sizes, deep, limit)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            continue
        return {**found, "blocks": deep, "each": each, "share": share, "limit": limit}
    raise MemoryError(f"none with {SHARES} of the memory of the device")


def bytes_of(method: Any, sizes: Sizes, deep: int) -> int:
    """Return the memory of a cycle of so many blocks; nothing is run."""
    return device.needs(compiled(method, sizes.growing, deep)[0])["bytes"]


def compiled(method: Any, growing: _decoder.Shape, deep: int) -> tuple[Any, Any, Any]:
    """Return the compiled cycle, the shapes of its state, and the decoder's."""
    shape = growing._replace(layers=deep)
    engine, start = device.without_arrays(partial(make, method, shape))
    batches = _decoder.batches(shape, STEPS)
    lowered = jax.jit(engine.step, donate_argnums=0).lower(start, batches)
    return compile_quickly(lowered), start, shape


def compile_quickly(lowered: Any) -> Any:
    """Compile without trying kernels on the device, if XLA knows that option."""
    try:
        return lowered.compile(compiler_options={"xla_gpu_autotune_level": 0})
    except Exception:  # the options of XLA change without notice
        return lowered.compile()


def make(method: Any, shape: _decoder.Shape) -> mlox.Engine:
    """Return the engine, whose blocks are recomputed in reverse mode."""
    each = partial(_decoder.losses, shape=shape, remat=True)
    return _decoder.engine(shape, method, STEPS, each=each)


def run(method: Any, sizes: Sizes, deep: int, limit: int) -> Row:
    """Run a cycle.

    Raises:
        MemoryError: If the compiler says that it does not fit.
    """
    program, start, shape = compiled(method, sizes.growing, deep)
    needs = device.needs(program)["bytes"]
    if needs > limit:
        raise MemoryError(f"{needs} of {limit} bytes")
    state = device.with_arrays(partial(make, method, shape), start)
    state, metrics = program(state, _decoder.batches(shape, STEPS))
    loss = float(np.mean(metrics["weights/loss"]))
    if not np.isfinite(loss):
        raise FloatingPointError("the loss is not finite")
    return {"parameters": shape.parameters, "bytes": needs, "loss": loss}


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error is one of memory, of this program or of XLA."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
