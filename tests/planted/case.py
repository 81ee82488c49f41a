"""A program as a value: how to build it, what is wrong in it, and how that shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

from . import proofs

Built = tuple[mlox.Engine, dict[str, mlox.Problem], dict[str, Any], str]


@dataclass(frozen=True)
class Case:
    """A program that a user could write.

    Attributes:
        name: What it is, in words.
        build: () -> engine, state, batches, and the name of the upper.
        cause: The name of the `mlox.Cause` that is planted; None in a healthy program.
        error: How far the program is off: the relative error of its hypergradient, or
            1.0 where something else shows the fault. At most 0.02 in a healthy program.
    """

    name: str
    build: Callable[[], Built]
    cause: str | None = None
    error: Callable[..., float] = proofs.against_solved


def as_parameters(cases, cheap):
    """Return cases for a parametrized test; those not among the cheap ones are slow."""
    return [
        pytest.param(
            case, id=case.name, marks=[] if case.name in cheap else [pytest.mark.slow]
        )
        for case in cases
    ]


def rows(
    seed: int, count: int = 20, size: int = 4, noise: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows of a linear regression: features and targets."""
    draw = np.random.default_rng(seed)
    slopes = np.random.default_rng(99).normal(size=size)
    x = draw.normal(size=(count, size))
    return x, x @ slopes + noise * draw.normal(size=count)


def signs(seed: int, count: int = 20, size: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows of a classification: features and labels 1 or -1."""
    x, y = rows(seed, count, size, noise=1.0)
    return x, np.sign(y)


TRAIN, VALID = rows(0), rows(1)


def squared(w: Any, data: Any) -> Any:
    """Return the mean squared error of a linear model, halved."""
    return 0.5 * jnp.mean((data[0] @ w - data[1]) ** 2)


def logistic(w: Any, data: Any) -> Any:
    """Return the mean logistic loss of a linear model."""
    return jnp.mean(jnp.logaddexp(0.0, -data[1] * (data[0] @ w)))


def ridge(w: Any, batch: Any, ctx: mlox.Context) -> Any:
    """Return the loss of ridge regression with one penalty for each feature."""
    return squared(w, batch) + 0.5 * jnp.sum(jnp.exp(ctx.penalty.params) * w**2)


def held_out(params: Any, batch: Any, ctx: mlox.Context) -> Any:
    """Return the error of the fit on other rows."""
    return squared(ctx.fit.params, batch)


def pair(
    fit: Mapping[str, Any] | None = None,
    penalty: Mapping[str, Any] | None = None,
    train: Any = TRAIN,
    valid: Any = VALID,
) -> Built:
    """Build "fit", by default a ridge regression, under "penalty"."""
    upper = {
        "params": jnp.full(4, -1.0),
        "tx": optax.adam(0.01),
        "loss_fn": held_out,
        **(penalty or {}),
    }
    lower = {
        "params": jnp.zeros(4),
        "tx": optax.sgd(0.5),
        "loss_fn": ridge,
        "unroll_steps": 60,
        **(fit or {}),
    }
    problems = [
        mlox.Problem.create(name="penalty", **upper),
        mlox.Problem.create(name="fit", **lower),
    ]
    engine = mlox.Engine(problems, {"penalty": ["fit"]}, {"fit": ["penalty"]})
    return start(engine, "penalty", penalty=valid, fit=train)


def start(engine: mlox.Engine, name: str, **data: Any) -> Built:
    """Return an engine with its first state, and the same batch for all steps."""
    batches = {n: repeat(data.get(n), k) for n, k in engine.steps_per_cycle.items()}
    return engine, engine.init(), batches, name


def repeat(batch: Any, steps: int) -> Any:
    """Return a batch with a leading axis of steps."""
    return jax.tree.map(lambda x: np.broadcast_to(x, (steps, *np.shape(x))), batch)
