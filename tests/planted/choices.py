"""A lower that chooses: its costs are known for what is chosen, not for chances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

from . import proofs
from .case import Built, Case, start

OUTCOMES = jnp.array(
    [[1.0, -0.5, 0.2, 0.4], [0.3, 0.8, -1.0, 0.1], [-0.7, 0.4, 0.6, -0.9]]
)
DRAWS = 400

# (log-probability of each choice, its cost) -> the loss of each.
Estimate = Callable[[Any, Any], Any]


def by_box(logp: Any, cost: Any) -> Any:
    return mlox.magic_box(logp) * cost


def by_surrogate(logp: Any, cost: Any) -> Any:
    """Return the loss of REINFORCE, whose first derivative alone is right."""
    return logp * jax.lax.stop_gradient(cost) + cost


def build(estimate: Estimate, draws: int | None = None, method: Any = None) -> Built:
    """Build "fit", a choice of three, under "penalty", which moves their costs.

    Args:
        estimate: How the choices are differentiated.
        draws: How many are drawn; None sums all three, with their chances as weights.
        method: That of the lower.
    """

    def fit_loss(logits: Any, batch: Any, ctx: mlox.Context) -> Any:
        chances = jax.nn.log_softmax(logits)
        costs = OUTCOMES @ ctx.penalty.params + jnp.outer(
            jnp.array([1.0, 2.0, -1.0]), jnp.sin(logits)
        ) @ jnp.array([0.3, -0.2, 0.1])
        each = estimate(chances, costs)
        if draws is None:
            mean = jnp.sum(jax.lax.stop_gradient(jnp.exp(chances)) * each)
        else:
            mean = jnp.mean(
                each[jax.random.categorical(ctx.rng, logits, shape=(draws,))]
            )
        return mean + 0.5 * jnp.sum(logits**2)

    def penalty_loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
        return jnp.sum((ctx.fit.params - 1.0) ** 2) + 0.1 * jnp.sum(params**2)

    penalty = mlox.Problem.create(
        name="penalty",
        params=jnp.array([0.7, -0.4, 0.5, 0.3]),
        tx=optax.sgd(0.1),
        loss_fn=penalty_loss,
    )
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.array([0.2, -0.5, 0.6]),
        tx=optax.sgd(0.3),
        loss_fn=fit_loss,
        method=method,
        unroll_steps=200,
        rng=None if draws is None else 0,
    )
    engine = mlox.Engine([penalty, fit], {"penalty": ["fit"]}, {"fit": ["penalty"]})
    return start(engine, "penalty")


def summed() -> Built:
    return build(by_box)


def surrogate() -> Built:
    return build(by_surrogate)


def drawn() -> Built:
    return build(by_box, DRAWS)


def drawn_surrogate() -> Built:
    return build(by_surrogate, DRAWS)


def against_summed(*built: Any) -> float:
    """Compare with the hypergradient of the loss in which all choices are summed."""
    found, truth = (proofs.hypergradient(*b) for b in (built, summed()))
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


FAULTS = [
    # A third of the length.
    Case("the surrogate of REINFORCE", surrogate, "DERIVATIVE_CUT", against_summed),
    Case(
        "the surrogate of REINFORCE, drawn",
        drawn_surrogate,
        "DERIVATIVE_CUT",
        against_summed,
    ),
]
HEALTHY = [
    Case("choices summed by a magic box", summed),
]
