"""jaxopt's `GradientDescent` with implicit differentiation, on the job of `_solved`."""

from __future__ import annotations

import functools

import jax
from _side import Given, Side
from jaxopt import GradientDescent, linear_solve
from peers import _solved, _steps


def build(given: Given, settings: _steps.Settings) -> Side:
    """Build the job."""
    cost, loss = _solved.losses(given)
    solver = GradientDescent(
        cost,
        stepsize=settings["rate"],
        maxiter=settings["iterations"],
        tol=0.0,
        acceleration=False,
        implicit_diff_solve=functools.partial(
            linear_solve.solve_cg,
            tol=settings["tolerance"],
            maxiter=settings["products"],
        ),
    )

    def answer(penalties: jax.Array, params: jax.Array) -> jax.Array:
        return solver.run(params, penalties).params

    return _solved.side(answer, loss, given, settings, "jaxopt")
