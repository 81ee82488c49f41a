"""One side of a comparison, in a process that can be told what to do.

`python benchmarks/_side.py [CORE]` stays on one core of the machine, reads orders from
stdin, a JSON object a line, and answers each with one on stdout. It imports nothing
that a peer's environment may lack: mlox and JAX come with the modules that build the
sides.

    {"build": {"module": "peers.maml_torchopt", "given": "given.npz"}}
        -> {"side": 0, "about": {...}, "facts": {...}, "started": 12345}
    {"advance": {"side": 0, "steps": 10}}  -> {"wall": 0.1, "processor": 0.1}
    {"outcome": {"side": 0, "to": "found.npz"}}  -> {}
    {"peak": {"side": 0, "steps": 10}}  -> {"held": 12345, "peak": 12345}

An order that fails is answered by {"error": "TypeError: ..."}.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Given = Mapping[str, np.ndarray]


class Side(NamedTuple):
    """A program that has been built, and waits at its start.

    Every module of peers/ whose name ends with that of a library has a function
    `build(given, settings) -> Side`.

    Attributes:
        advance: Make some upper steps, each on from where the one before it ended, and
            return when they are done.
        outcome: Return what the steps have found so far: arrays by the names that all
            sides of the comparison share.
        about: The versions of the libraries, by their names.
        facts: What is known of the compiled program, if there is one: "compile" and
            "compile processor" (seconds of tracing, lowering and compiling), "flops" of
            one upper step, and "temporaries" (bytes).
    """

    advance: Callable[[int], None]
    outcome: Callable[[], Mapping[str, np.ndarray]]
    about: Mapping[str, str]
    facts: Mapping[str, float] = {}


def build(order: Mapping[str, str]) -> tuple[Side, int]:
    """Build a side from its module and the file of what it is given.

    The file holds arrays by name, and "settings", an array of one JSON text. The number
    is the resident memory before, when the libraries have started.
    """
    with np.load(order["given"]) as file:
        given = dict(file)
    settings = json.loads(str(given.pop("settings")))
    module = importlib.import_module(order["module"])
    start_libraries()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    started = resident("VmRSS")
    return module.build(given, settings), started


def start_libraries() -> None:
    """Differentiate and step with one number, in the library that has been imported.

    What a library makes and imports at its first use is no part of a side: JAX starts a
    compiler, and PyTorch imports more of itself with the first step of an optimizer.
    """
    if "jax" in sys.modules:
        jax = sys.modules["jax"]
        jax.jit(jax.grad(lambda x: x * x))(1.0).block_until_ready()
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        number = torch.ones(1, requires_grad=True)
        (number * number).sum().backward()
        torch.optim.SGD([number], lr=0.1).step()


def advance(side: Side, steps: int) -> dict[str, float]:
    """Return the seconds that some steps take, all together."""
    wall, processor = time.perf_counter(), time.process_time()
    side.advance(steps)
    return {
        "wall": time.perf_counter() - wall,
        "processor": time.process_time() - processor,
    }


def peak(side: Side, steps: int) -> dict[str, int]:
    """Return the resident memory before some steps, and the largest during them.

    What is free is returned to the system before, as a compiler leaves much of it.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    held = resident("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    side.advance(steps)
    return {"held": held, "peak": resident("VmHWM")}


def resident(line: str) -> int:
    """Return the bytes of a line of what Linux says of this process."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{line}:\s+(\d+) kB", status)[1]) * 1024


def answer(sides: list[Side], order: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out one order."""
    ((verb, given),) = order.items()
    if verb == "build":
        side, started = build(given)
        sides.append(side)
        about, facts = dict(side.about), dict(side.facts)
        found = {"about": about, "facts": facts, "started": started}
        return {"side": len(sides) - 1, **found}
    side = sides[given["side"]]
    if verb == "outcome":
        np.savez(given["to"], **side.outcome())
        return {}
    return {"advance": advance, "peak": peak}[verb](side, given["steps"])


def main() -> None:
    if len(sys.argv) > 1:
        os.sched_setaffinity(0, {int(sys.argv[1])})  # before threads are made
    sides: list[Side] = []
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # libraries may print
        for line in sys.stdin:
            try:
                found = answer(sides, json.loads(line))
            except Exception as error:
                found = {"error": f"{type(error).__name__}: {error}"[:500]}
            print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
