"""Faults of answers that are not solved, and of the systems that belong to them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

from . import three_levels
from .case import TRAIN, VALID, Built, Case, pair, squared
from .proofs import against_program, against_solved


def cold() -> Built:
    """Four small steps from zero."""
    return pair(
        {"tx": optax.sgd(0.02), "unroll_steps": 4}, {"params": jnp.full(4, -4.0)}
    )


def fresh() -> Built:
    """Solve again from zeros for every upper step, by too few steps of Adam."""
    return pair(
        {
            "tx": optax.adam(1e-2),
            "unroll_steps": 10,
            "reset": lambda params, ctx: jax.tree.map(jnp.zeros_like, params),
        }
    )


def long_neumann() -> Built:
    """The largest eigenvalue is 1.9, and the series grows beyond 2 / 1.5."""
    solver = mlox.Neumann(iterations=20, step=1.5)
    return pair({"method": mlox.Implicit(solver)})


def product_loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
    """Fit a product of two factors, whose Hessian is indefinite off its minima."""
    decay = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(w))
    return product_error(w, batch) + 0.5 * jnp.exp(ctx.penalty.params) * decay


def product_error(w: Any, batch: Any) -> Any:
    return squared(w["a"] * w["b"], batch)


def factors(key: int) -> Any:
    draw = np.random.default_rng(key).normal
    return {"a": jnp.array(0.3 * draw(size=4)), "b": jnp.array(0.1)}


def indefinite() -> Built:
    """Few steps on a product: two eigenvalues are below -0.8."""
    return pair(
        {
            "params": factors(3),
            "loss_fn": product_loss,
            "tx": optax.sgd(0.01),
            "unroll_steps": 3,
            "method": mlox.Implicit(mlox.CG(iterations=20)),
        },
        {
            "params": jnp.asarray(-3.0),
            "loss_fn": lambda params, batch, ctx: product_error(ctx.fit.params, batch),
        },
    )


SCALES = np.array([[10.0, 2.0, 0.5, 0.2]])
STEEP = (TRAIN[0] * SCALES, TRAIN[1])
STEEP_VALID = (VALID[0] * SCALES, VALID[1])


def short_solver() -> Built:
    """Features of different scales: a condition of 2000, and two products."""
    return pair(
        {
            "tx": optax.sgd(0.015, momentum=0.97, nesterov=True),
            "unroll_steps": 2000,
            "method": mlox.Implicit(mlox.CG(iterations=2)),
        },
        {"params": jnp.full(4, -4.0)},
        STEEP,
        STEEP_VALID,
    )


def clipped() -> Built:
    """Steps of at most 1e-3: far from the answer after 60 of them."""
    tx = optax.chain(optax.clip(1e-2), optax.sgd(0.1))
    return pair({"tx": tx})


def clipped_norm() -> Built:
    """The whole gradient clipped to a norm of 0.01."""
    return pair({"tx": optax.chain(optax.clip_by_global_norm(1e-2), optax.sgd(0.5))})


def shrink() -> Built:
    """Coefficients that are made smaller after each step, in place of a penalty."""
    return pair({"project": lambda w: 0.9 * w})


def unit_sum() -> Built:
    """Coefficients that are divided by the sum of their sizes."""
    return pair({"project": lambda w: w / jnp.sum(jnp.abs(w))})


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A method of the user's own, off by a factor."""

    factor: float

    def multiplier(self, answer: Any, cotangent: Any, guess: Any) -> Any:
        found, _, info = mlox.Implicit().multiplier(answer, cotangent, guess)
        return jax.tree.map(lambda x: self.factor * x, found), info

    def pairing(self, cost: Any, point: Any, multiplier: Any) -> Any:
        return mlox.Implicit().pairing(cost, point, multiplier)


def scaled(factor: float) -> Built:
    return pair({"method": Scaled(factor)})


CASES = [
    # Cosine -0.62, 0.8 times the length.
    Case("a cold start", cold, "LOWER_UNSOLVED"),
    # Cosine 0.91, 0.7 times the length.
    Case("ten steps after each reset", fresh, "LOWER_UNSOLVED"),
    # 15,000 times the length.
    Case("a Neumann series that diverges", long_neumann, "STEP_TOO_LARGE"),
    # One eigenvalue is -0.5; 6 times the length.
    Case(
        "a product of factors",
        indefinite,
        "INDEFINITE",
        functools.partial(against_solved, descend=8000, rate=0.02),
    ),
    # 0.11 times the length.
    Case("two products at a condition of 2000", short_solver, "SOLVER_TOO_SHORT"),
    # 0.42 times the length.
    Case(
        "three levels with direct coupling",
        functools.partial(three_levels.build, "direct"),
        "COUPLING",
        three_levels.against_solved,
    ),
    # Cosine 0.93, 0.43 times the length.
    Case("clipped slopes", clipped, "CLIPPED"),
    # 18 % off.
    Case("slopes clipped by their norm", clipped_norm, "CLIPPED"),
    Case("coefficients that shrink", shrink, "PROJECTION", against_program),
    Case("coefficients over their sum", unit_sum, "PROJECTION", against_program),
    # Cosine -1.
    Case(
        "a method with the wrong sign",
        functools.partial(scaled, -1.0),
        "METHOD_WRONG",
    ),
    # Half the length.
    Case(
        "a method without its factor",
        functools.partial(scaled, 0.5),
        "METHOD_WRONG",
    ),
]
