"""optimistix's `GradientDescent` with `ImplicitAdjoint`, on the job of `_solved`."""

from __future__ import annotations

import jax
import lineax
import optimistix
from _side import Given, Side
from peers import _solved, _steps


def build(given: Given, settings: _steps.Settings) -> Side:
    """Build the job."""
    cost, loss = _solved.losses(given)
    # Without tolerances it makes all its steps, and says that it has not converged.
    solver = optimistix.GradientDescent(settings["rate"], rtol=0.0, atol=0.0)
    close = settings["tolerance"]
    adjoint = optimistix.ImplicitAdjoint(
        lineax.CG(rtol=close, atol=0.0, max_steps=settings["products"])
    )

    def answer(penalties: jax.Array, params: jax.Array) -> jax.Array:
        return optimistix.minimise(
            cost,
            solver,
            params,
            penalties,
            adjoint=adjoint,
            max_steps=settings["iterations"],
            throw=False,
            tags=frozenset({lineax.positive_semidefinite_tag}),
        ).value

    libraries = "optimistix", "lineax", "equinox"
    return _solved.side(answer, loss, given, settings, *libraries)
