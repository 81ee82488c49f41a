"""mlox beside the same step hand-written in JAX, in float32, both in turn.

Meta-Weight-Nets on an MLP and on a CNN, and weights of sequences on a transformer; one
cycle in each call, and fifty where loops are loops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import _by_hand
import _decoder
import _timing
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _jobs import Job, cnn, engine, mlp

from mlox import CG, FiniteDifference, Implicit
from on_accelerator.parts import Place, Row, Rows
from on_accelerator.sizes import SIZES, Sizes

UNROLL, CYCLES = 5, 50
STEPS = 3
"""After so many cycles both sides are compared; differences grow with training."""

AGREEMENT = 1e-3


class Side(NamedTuple):
    """A step, and a function that makes a fresh state."""

    step: _timing.Step
    state: Callable[[], Any]


def rows(place: Place) -> Rows:
    """Return a row for each job and method."""
    sizes = SIZES[place.size]
    methods = {"DARTS": FiniteDifference(), "CG 5": Implicit(CG(5, damping=1.0))}
    found = {}
    for name in ("MLP", "CNN", "transformer"):
        for word, method in methods.items():
            make = partial(job, name, method, sizes)
            found[f"{name}, {word}"] = partial(compare, make, sizes.seconds)
    return found


def job(name: str, method: Any, sizes: Sizes) -> Job:
    """Return a job, with loops that are loops."""
    if name == "transformer":
        return reweighted_sequences(sizes.transformer, method)
    if name == "MLP":
        return mlp(UNROLL, method, width=sizes.mlp)
    images = cnn(UNROLL, method, channels=sizes.channels)
    return dataclasses.replace(images, loops=True)


def reweighted_sequences(shape: _decoder.Shape, method: Any) -> Job:
    """Return the job of _decoder as both sides of a comparison share it."""
    each = lambda params, batch: _decoder.losses(params, batch["t"], shape)

    def lower_loss(lower: Any, upper: Any, batch: Any) -> dict[str, jax.Array]:
        weights = jax.nn.sigmoid(upper[batch["i"]])
        return {"loss": jnp.mean(weights * each(lower, batch))}

    found = _decoder.batches(shape, UNROLL)
    return Job(
        name="transformer",
        lower_loss=lower_loss,
        upper_loss=lambda lower, upper, batch: {"loss": jnp.mean(each(lower, batch))},
        lower=_decoder.init(shape),
        upper=jnp.zeros(UNROLL * shape.rows, jnp.float32),
        lower_tx=optax.sgd(0.01, momentum=0.9),
        upper_tx=optax.sgd(0.1),
        batches={"lower": found["fit"], "upper": found["weights"]},
        method=method,
    )


def compare(make: Any, seconds: float) -> Row:
    """Return the times of both sides, if their outcomes agree.

    Raises:
        ArithmeticError: If they do not.
    """
    with jax.default_matmul_precision("highest"):
        job = make()
        sides = list(sides_of(job))
        programs = [compiled(side, job) for side in sides]
        difference = _timing.difference(
            *(outcome(*both, job) for both in zip(sides, programs, strict=True))
        )
        if difference > AGREEMENT:
            raise ArithmeticError(f"the sides differ by {difference:.1e}")
        found = {"difference": difference, "one": timed(sides, programs, job, seconds)}
        many = [Side(_timing.many(side.step, CYCLES), side.state) for side in sides]
        programs = [compiled(side, job) for side in many]
        both = timed(many, programs, job, seconds)
        return {**found, "many": {key: x / CYCLES for key, x in both.items()}}


def sides_of(job: Job) -> Iterator[Side]:
    """Yield mlox, and the same by hand."""
    ours = engine(job, unroll_loops=False)
    yield Side(ours.step, ours.init)
    yield Side(_by_hand.step(job), lambda: _by_hand.state(job))


def compiled(side: Side, job: Job) -> Any:
    """Return a compiled step, whose state is donated."""
    return _timing.compiled(side.step, side.state(), job.batches).program


def outcome(side: Side, program: Any, job: Job) -> Any:
    """Return the parameters after some cycles."""
    state = side.state()
    for _ in range(STEPS):
        state, _ = program(state, job.batches)
    params = lambda x: getattr(x, "params", x)
    return {name: params(state[name]) for name in ("lower", "upper")}


def timed(
    sides: list[Side], programs: list[Any], job: Job, seconds: float
) -> dict[str, float]:
    """Return the median seconds of a call of both sides."""
    runs = [
        _timing.repeated(program, side.state(), job.batches)
        for side, program in zip(sides, programs, strict=True)
    ]
    found = np.array(_timing.alternated(runs, seconds))[:, :, 0]
    return dict(zip(("mlox", "by hand"), np.median(found, 0).tolist(), strict=True))
