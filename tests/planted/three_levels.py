"""Three levels: a ridge regression, its penalties, and the strength of their prior."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

import mlox

from . import proofs
from .case import TRAIN, VALID, Built, ridge, rows, squared, start

TEST = rows(2)
PRIOR = -1.0


def solve_fit(p: Any) -> Any:
    """Return the slopes that minimize the loss of "fit"."""
    x, y = TRAIN
    return jnp.linalg.solve(
        x.T @ x / len(y) + jnp.diag(jnp.exp(p)), jnp.asarray(x.T @ y / len(y))
    )


def penalty_cost(p: Any, t: Any, w: Any) -> Any:
    return squared(w, VALID) + 0.5 * jnp.exp(t) * jnp.sum((p - PRIOR) ** 2)


def solve_penalty(t: Any) -> Any:
    """Return the penalties that minimize their total cost."""

    def newton(_: Any, p: Any) -> Any:
        total = lambda p: penalty_cost(p, t, solve_fit(p))
        return p - jnp.linalg.solve(jax.hessian(total)(p), jax.grad(total)(p))

    return jax.lax.fori_loop(0, 20, newton, jnp.full(4, PRIOR))


def build(coupling: Any = "total", price: float = 0.05) -> Built:
    """Build the program at its solution.

    The prior judges the slopes, and at a price above zero also the penalties.
    """
    t = jnp.asarray(-2.5)
    p = jax.jit(solve_penalty)(t)

    def penalty_loss(p: Any, batch: Any, ctx: mlox.Context) -> Any:
        away = 0.5 * jnp.sum((p - PRIOR) ** 2)
        return squared(ctx.fit.params, batch) + jnp.exp(ctx.prior.params) * away

    def prior_loss(t: Any, batch: Any, ctx: mlox.Context) -> Any:
        loss = squared(ctx.fit.params, TEST)
        return loss + price * jnp.sum(jnp.exp(ctx.penalty.params)) if price else loss

    problems = [
        mlox.Problem.create(
            name="prior", params=t, tx=optax.sgd(0.1), loss_fn=prior_loss
        ),
        mlox.Problem.create(
            name="penalty",
            params=p,
            tx=optax.sgd(0.1),
            loss_fn=penalty_loss,
            unroll_steps=2,
        ),
        mlox.Problem.create(
            name="fit",
            params=solve_fit(p),
            tx=optax.sgd(0.5),
            loss_fn=ridge,
            unroll_steps=20,
        ),
    ]
    engine = mlox.Engine(
        problems,
        {"prior": ["penalty"], "penalty": ["fit"]},
        {"fit": ["penalty", "prior"], "penalty": ["prior"]},
        coupling=coupling,
    )
    return start(engine, "prior", penalty=VALID, fit=TRAIN)


def against_solved(*built: Any, price: float = 0.05) -> float:
    """Compare with differences of the program that is solved level by level."""
    _, state, _, _ = built

    def top(shift: Any) -> Any:
        p = solve_penalty(state["prior"].params + shift[0])
        return squared(solve_fit(p), TEST) + price * jnp.sum(jnp.exp(p))

    return proofs.relative_error(proofs.hypergradient(*built), top)
