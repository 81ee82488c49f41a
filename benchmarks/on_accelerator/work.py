"""The price of one step of the upper by floating-point operations.

Counted by XLA in the optimized program for a CPU, as it counts none in the libraries
that a GPU calls. The blocks of the decoder are written out, and are two, because a
loop's body is counted once; so are the iterations of CG.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import mlox
from on_accelerator import price
from on_accelerator.parts import Place, Row, Rows
from on_accelerator.sizes import SIZES, Sizes

QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
"""How to compile what is counted, and not run: the machine code is not optimized."""

Make = Callable[[Any, Sizes], price.Priced]


@dataclasses.dataclass(frozen=True)
class Differences:
    """Solve as `mlox.Implicit`, with differences of gradients as the products.

    A product takes one gradient, and has an error of first order in epsilon.

    Attributes:
        solver: The solver of the linear system.
        epsilon: The length of the perturbation of all parameters.
    """

    solver: mlox.CG
    epsilon: float = 0.01

    def multiplier(
        self, answer: mlox.Answer, cotangent: Any, guess: Any | None = None
    ) -> tuple[Any, Any]:
        """Solve (dG/dy) lambda = cotangent approximately."""
        slope = answer.residual(answer.point)

        def product(v: Any) -> Any:
            norm = optax.tree.norm(v)
            step = self.epsilon / jnp.where(norm > 0, norm, 1)
            moved = jax.tree.map(lambda y, v: y + step * v, answer.point, v)
            found = answer.residual(moved)
            return jax.tree.map(lambda a, b: (a - b) / step, found, slope)

        return self.solver(product, cotangent, guess)

    def pairing(
        self, cost: Callable[[Any], jax.Array], point: Any, multiplier: Any
    ) -> jax.Array:
        """Return <multiplier, d cost/dy>, exactly."""
        return jax.jvp(cost, (point,), (multiplier,))[1]


CG = mlox.CG(5, damping=1.0)
METHODS = {
    **price.METHODS,
    "SAMA(epsilon=0.01)": mlox.SAMA(epsilon=0.01),
    "GaussNewton(CG(5))": mlox.GaussNewton(CG),
    "CG(5), products by differences of gradients": Differences(CG),
}
"""Those that are timed, and what else may meet their targets."""


def rows(place: Place) -> Rows:
    """Return a row for each job and method."""
    sizes = SIZES[place.size]
    makes = {"decoder": short_decoder, "MLP": network}
    return {
        f"{name}, {word}": functools.partial(count, make, method, sizes)
        for name, make in makes.items()
        for word, method in METHODS.items()
    }


def short_decoder(method: Any, sizes: Sizes) -> price.Priced:
    """Return the decoder with two blocks, written out."""
    shape = sizes.decoder._replace(layers=2)
    return price.sequences(method, shape, written_out=True)


def network(method: Any, sizes: Sizes) -> price.Priced:
    """Return the MLP without loops."""
    return price.network(method, sizes, unroll_loops=True)


def count(make: Make, method: Any, sizes: Sizes) -> Row:
    """Return the operations of a step of the lower, the price, and that of a product.

    A product is an iteration of the solver, the mean of all after the first.
    """
    lower = count_lower(make, sizes)
    solver = getattr(method, "solver", None)
    if not isinstance(solver, mlox.CG):
        return {"lower": lower, "price": count_cycle(make, method, sizes) / lower - 1}
    one, every = (
        count_cycle(make, with_iterations(method, number), sizes)
        for number in (1, solver.iterations)
    )
    product = (every - one) / (solver.iterations - 1)
    return {"lower": lower, "product": product / lower, "price": every / lower - 1}


def with_iterations(method: Any, number: int) -> Any:
    """Return a method whose solver makes another number of iterations, written out."""
    solver = dataclasses.replace(method.solver, iterations=number, unroll=True)
    return dataclasses.replace(method, solver=solver)


def count_cycle(make: Make, method: Any, sizes: Sizes) -> float:
    """Return the operations of a cycle."""
    job = make(method, sizes)
    return operations(job.engine.step, job.engine.init(), job.batches)


@functools.cache
def count_lower(make: Make, sizes: Sizes) -> float:
    """Return the operations of a step of the lower, which no method changes."""
    job = make(mlox.SAMA(), sizes)
    return operations(job.lower, job.params, price.ADAM.init(job.params), job.batch)


def operations(function: Any, *args: Any) -> float:
    """Return the operations of a compiled function."""
    program = jax.jit(function).lower(*args).compile(QUICKLY)
    return program.cost_analysis()["flops"]
