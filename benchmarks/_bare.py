"""The step without the losses of the lower, beside two floors.

A gradient does not need the value of its loss. `Engine(metrics="none")` is compared
with the hand-written step that evaluates none either, and with jaxopt's `custom_root`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import _by_hand
import _jaxopt_side
import _timing
import numpy as np
from _jobs import Job, engine

# The largest ratios to the hand-written step, and to jaxopt's, that we accept.
BY_HAND, JAXOPT = 1.05, 1.02


class Side(NamedTuple):
    """One side of a comparison: a step, and a function that makes a fresh state."""

    step: _timing.Step
    state: Callable[[], Any]


class Bare(NamedTuple):
    """What was measured of a job.

    Attributes:
        seconds: Of mlox for one step, by the clock.
        processor: Processor seconds, mlox over each other side.
        flops: Operations, mlox over each other side.
        difference: The largest relative difference of parameters to the hand-written.
    """

    seconds: float
    processor: Mapping[str, float]
    flops: Mapping[str, float]
    difference: float


def measure(job: Job, seconds: float, cycles: int) -> Bare:
    """Measure a job, with many cycles in each call if it has loops."""
    sides = dict(_sides(job))
    programs = {
        name: _timing.compiled(side.step, side.state(), job.batches)
        for name, side in sides.items()
    }
    flops = {name: program.flops for name, program in programs.items()}
    count = cycles if job.loops else 1
    if job.loops:
        steps = {name: _timing.many(side.step, count) for name, side in sides.items()}
        programs = {
            name: _timing.compiled(steps[name], side.state(), job.batches)
            for name, side in sides.items()
        }
    runs = [
        _timing.repeated(programs[name].program, side.state(), job.batches)
        for name, side in sides.items()
    ]
    wall, processor = np.moveaxis(np.array(_timing.alternated(runs, seconds)), 2, 0)
    ratios = np.median(processor[:, :1] / processor, axis=0)
    params = []
    for name in ("mlox", "by hand"):
        state, _ = programs[name].program(sides[name].state(), job.batches)
        params.append([state["lower"], state["upper"]])
    ours = [problem.params for problem in params[0]]
    return Bare(
        seconds=float(np.median(wall[:, 0])) / count,
        processor=dict(zip(sides, ratios.tolist(), strict=True)),
        flops={name: flops["mlox"] / x for name, x in flops.items()},
        difference=_timing.difference(ours, params[1]),
    )


def _sides(job: Job) -> Iterator[tuple[str, Side]]:
    silent, loud = engine(job, metrics="none"), engine(job)
    by_hand = lambda: _by_hand.state(job)
    yield "mlox", Side(silent.step, silent.init)
    yield "by hand", Side(_by_hand.step(job, losses=False), by_hand)
    if _jaxopt_side.is_comparable(job):
        yield "jaxopt", Side(_jaxopt_side.step(job), by_hand)
    yield "with losses", Side(loud.step, loud.init)


def table(found: Iterable[tuple[str, Bare]]) -> str:
    """Format the table."""
    others = ("by hand", "jaxopt", "with losses")
    head = ["no losses of the lower", "mlox"]
    for name in others:
        head += [f"CPU time to {name}", "FLOPs"]
    rows = []
    for name, bare in found:
        row = [name, _timing.duration(bare.seconds)]
        for other in others:
            both = bare.processor.get(other), bare.flops.get(other)
            row += ["" if x is None else f"{x:.3f}" for x in both]
        rows.append([*row, f"{bare.difference:.0e}"])
    return _timing.table([*head, "difference"], rows)


def missed(found: Iterable[tuple[str, Bare]]) -> Iterator[str]:
    """List what missed its target."""
    for name, bare in found:
        for other, target in (("by hand", BY_HAND), ("jaxopt", JAXOPT)):
            for what in ("processor", "flops"):
                ratio = getattr(bare, what).get(other, 0.0)
                if ratio > target:
                    yield f"- above {target}: {name}: {what} to {other}: {ratio:.3f}"
