"""The price of one step of the upper, in steps of the lower.

A step of the lower is a gradient and its update by Adam, written in plain JAX. A cycle
is one such step and one of the upper; its price is

    (time of a cycle - time of a step of the lower) / time of a step of the lower,

with batches of the same size. `work` counts the same in floating-point operations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import _decoder
import _timing
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _jobs import engine, mlp

import mlox
from on_accelerator.parts import Place, Row, Rows
from on_accelerator.sizes import SIZES, Sizes

ADAM = _decoder.ADAM
METHODS = {
    "FiniteDifference()": mlox.FiniteDifference(),
    "SAMA()": mlox.SAMA(),
    "Unrolled(last_steps=1)": mlox.Unrolled(last_steps=1),
    "Implicit(Identity())": mlox.Implicit(mlox.Identity()),
    "Implicit(CG(5))": mlox.Implicit(mlox.CG(5, damping=1.0)),
}


class Priced(NamedTuple):
    """A job whose price is measured.

    Attributes:
        engine: The engine, for one step of the lower in a cycle.
        batches: Of a cycle.
        loss: (params, batch) -> that of the lower.
        params: Of the lower.
        batch: Of one step of the lower.
    """

    engine: mlox.Engine
    batches: Any
    loss: Callable[[Any, Any], jax.Array]
    params: Any
    batch: Any

    def lower(self, params: Any, state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        """Make a step of the lower: its loss, a gradient, and Adam's update."""
        value, slope = jax.value_and_grad(self.loss)(params, batch)
        updates, state = ADAM.update(slope, state, params)
        return optax.apply_updates(params, updates), state, value


def rows(place: Place) -> Rows:
    """Return a row for each job and method."""
    sizes = SIZES[place.size]
    return {
        f"{name}, {word}": partial(measure, make, method, sizes)
        for name, make in {"decoder": decoder, "MLP": network}.items()
        for word, method in METHODS.items()
    }


def decoder(method: Any, sizes: Sizes) -> Priced:
    """Weigh the sequences of the decoder."""
    return sequences(method, sizes.decoder)


def sequences(
    method: Any, shape: _decoder.Shape, *, written_out: bool = False
) -> Priced:
    """Weigh the sequences of a decoder, with loops or without."""
    how = {"shape": shape, "written_out": written_out}
    each = partial(_decoder.losses, **how)
    options: dict[str, Any] = {"unroll_loops": True} if written_out else {}
    if isinstance(method, mlox.GaussNewton):
        options["outputs"] = partial(_decoder.scores, **how)
    params, found = _decoder.init(shape), _decoder.batches(shape, 1)
    made = _decoder.engine(shape, method, 1, params=params, each=each, **options)
    weights = made.init()["weights"].params

    def loss(params: Any, batch: Any) -> jax.Array:
        return jnp.mean(jax.nn.sigmoid(weights[batch["i"]]) * each(params, batch["t"]))

    return Priced(made, found, loss, params, _first(found["fit"]))


def network(method: Any, sizes: Sizes, **options: bool) -> Priced:
    """Weigh the examples of an MLP by a net of their losses."""
    job = dataclasses.replace(mlp(1, method, width=sizes.mlp), lower_tx=ADAM)
    loss = lambda params, batch: job.lower_loss(params, job.upper, batch)["loss"]
    first = _first(job.batches["lower"])
    return Priced(engine(job, **options), job.batches, loss, job.lower, first)


def measure(make: Callable[[Any, Sizes], Priced], method: Any, sizes: Sizes) -> Row:
    """Return the seconds of a cycle and of a step of the lower, in turns."""
    job = make(method, sizes)
    cycle = _timing.compiled(job.engine.step, job.engine.init(), job.batches).program

    def lower(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        params, opt, value = job.lower(*state, batch)
        return (params, opt), value

    start = lambda: jax.tree.map(jnp.copy, (job.params, ADAM.init(job.params)))
    alone = _timing.compiled(lower, start(), job.batch).program
    runs = [
        _timing.repeated(cycle, job.engine.init(), job.batches),
        _timing.repeated(alone, start(), job.batch),
    ]
    rounds = np.array(_timing.alternated(runs, sizes.seconds))[:, :, 0]
    whole, one = np.median(rounds, 0).tolist()
    price = float(np.median(rounds[:, 0] / rounds[:, 1])) - 1
    return {"cycle": whole, "lower": one, "price": price}


def _first(batches: Any) -> Any:
    return jax.tree.map(lambda x: x[0], batches)
