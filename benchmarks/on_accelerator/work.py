"""The price of one step of the upper by floating-point operations.

Counted by XLA in the optimized program for a CPU, as it counts none in the libraries
that a GPU calls. The blocks of the decoder are written out, and are two, because a
loop's body is counted once; that of CG is counted by itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

import mlox
from on_accelerator import price
from on_accelerator.parts import Place, Row, Rows
from on_accelerator.sizes import SIZES, Sizes


def rows(place: Place) -> Rows:
    """Return a row for each job and method."""
    sizes = SIZES[place.size]
    makes = {"decoder": short_decoder, "MLP": network}
    return {
        f"{name}, {word}": partial(count, make, method, sizes)
        for name, make in makes.items()
        for word, method in price.METHODS.items()
    }


def short_decoder(method: Any, sizes: Sizes) -> price.Priced:
    """Return the decoder with two blocks, written out."""
    shape = sizes.decoder._replace(layers=2)
    return price.sequences(method, shape, written_out=True)


def network(method: Any, sizes: Sizes) -> price.Priced:
    """Return the MLP without loops."""
    return price.network(method, sizes, unroll_loops=True)


def count(make: Any, method: Any, sizes: Sizes) -> Row:
    """Return the operations of a cycle and of a step of the lower, and the price."""
    job = make(method, sizes)
    cycle = operations(job.engine.step, job.engine.init(), job.batches)
    opt = price.ADAM.init(job.params)
    lower = operations(job.lower, job.params, opt, job.batch)
    product = operations_of_product(job)
    cycle += (products(method) - 1) * product if products(method) else 0
    return {
        "lower": lower,
        "product": product / lower,
        "price": (cycle - lower) / lower,
    }


def products(method: Any) -> int:
    """Return how many products with a Hessian the solver of a method makes."""
    solver = getattr(method, "solver", None)
    return solver.iterations if isinstance(solver, mlox.CG) else 0


def operations_of_product(job: price.Priced) -> float:
    """Return the operations of one more product with a Hessian, linearized once."""

    def times(number: int) -> float:
        def product(params: Any, v: Any, batch: Any) -> Any:
            slope = lambda params: jax.grad(lambda p: job.loss(p, batch))(params)
            push = jax.linearize(slope, params)[1]
            for _ in range(number):
                v = push(v)
            return v

        return operations(product, job.params, job.params, job.batch)

    return times(2) - times(1)


def operations(function: Any, *args: Any) -> float:
    """Return the operations of a compiled function."""
    found = jax.jit(function).lower(*args).compile().cost_analysis()
    return found["flops"]
