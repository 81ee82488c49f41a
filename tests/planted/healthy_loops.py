"""Healthy programs whose loops are differentiated, or start anew, or have a past."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

from .case import Built, Case, pair, ridge, rows, squared, start
from .proofs import against_program, hypergradient


def unrolled(tx: Any, steps: int = 15, **options: Any) -> Any:
    method = mlox.Unrolled(**options)
    return lambda: pair({"tx": tx, "unroll_steps": steps, "method": method})


TASKS = 3


def task_rows(seed: int) -> Any:
    """Return the rows of three tasks, which share a part of their slopes."""
    each = [rows(seed + i, 8, 3) for i in range(TASKS)]
    shift = np.random.default_rng(6).normal(size=(TASKS, 3))
    return (
        np.stack([x for x, _ in each]),
        np.stack([x @ (1.0 + s) for (x, _), s in zip(each, shift, strict=True)]),
    )


def tasks(method: Any, prox: float = 0.0, steps: int = 3, reset: bool = True) -> Any:
    """Learn the start of short fits to three tasks, or what they are pulled towards."""

    def task_loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        away = 0.5 * prox * jnp.sum((w - ctx.init.params) ** 2)
        return squared(w, batch) + away if prox else squared(w, batch)

    def init_loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
        return jax.vmap(squared)(ctx.tasks_.params, batch).mean()

    def build() -> Built:
        problems = [
            mlox.Problem.create(
                name="init",
                params=jnp.zeros(3),
                tx=optax.adam(0.01),
                loss_fn=init_loss,
            ),
            mlox.Problem.create(
                name="tasks_",
                params=jnp.zeros(3),
                tx=optax.sgd(0.1),
                loss_fn=task_loss,
                method=method,
                unroll_steps=steps,
                tasks=TASKS,
                reset=(lambda params, ctx: ctx.init.params) if reset else None,
            ),
        ]
        engine = mlox.Engine(problems, {"init": ["tasks_"]}, {"tasks_": ["init"]})
        return start(engine, "init", init=task_rows(0), tasks_=task_rows(9))

    return build


def against_first_order(engine: Any, state: Any, batches: Any, name: str) -> float:
    """Compare with the mean of the upper's slopes at the adapted parameters."""
    found = hypergradient(engine, state, batches, name)
    after, _ = jax.jit(engine.step)(state, batches)
    first = jax.tree.map(lambda x: x[0], batches[name])
    slopes = jax.grad(lambda w: jax.vmap(squared)(w, first).mean())
    truth = np.asarray(slopes(after["tasks_"].params).sum(axis=0))
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def weighed_by_losses() -> Built:
    """Weights that are a function of losses, which are constants for it."""

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        errors = (batch[0] @ w - batch[1]) ** 2
        scale, offset = ctx.penalty.params
        weights = jax.nn.sigmoid(scale * jax.lax.stop_gradient(errors) + offset)
        return jnp.mean(weights * errors)

    return pair(
        {
            "loss_fn": loss,
            "tx": optax.sgd(0.1),
            "unroll_steps": 1,
            "method": mlox.Unrolled(),
        },
        {"params": jnp.array([-0.5, 0.0])},
    )


def dropout(method: Any, steps: int) -> Any:
    """Dropout on the features, with the key of the step."""

    def loss(w: Any, batch: Any, ctx: mlox.Context) -> Any:
        kept = jax.random.bernoulli(ctx.rng, 0.8, batch[0].shape)
        return ridge(w, (jnp.where(kept, batch[0] / 0.8, 0.0), batch[1]), ctx)

    return lambda: pair(
        {
            "loss_fn": loss,
            "rng": 0,
            "unroll_steps": steps,
            "tx": optax.sgd(0.2),
            "method": method,
        }
    )


def warmed_up() -> Built:
    """A warm-up that is over after the first of two cycles."""
    engine, state, batches, name = pair({"warmup_steps": 50, "unroll_steps": 40})
    state, _ = jax.jit(engine.step)(state, batches)
    return engine, state, batches, name


def trained() -> Built:
    """Few steps in a cycle, at a state to which a run has led."""
    engine, state, batches, name = pair({"unroll_steps": 5})
    data = {n: [jax.tree.map(lambda x: x[0], batch)] for n, batch in batches.items()}
    state, _ = engine.run(state, data, 60, loggers=(), progress=False)
    return engine, state, batches, name


def sampled() -> Built:
    """Rows that the problem makes itself, the same in every step."""

    def sample(params: Any, ctx: mlox.Context) -> Any:
        x = jax.random.normal(jax.random.key(7), (20, 4))
        return x, x.sum(axis=1)

    engine, state, batches, name = pair({"sample": sample, "unroll_steps": 200})
    return engine, state, {**batches, "fit": None}, name


CASES = [
    Case("unrolled SGD", unrolled(optax.sgd(0.3)), None, against_program),
    Case(
        "unrolled momentum",
        unrolled(optax.sgd(0.1, momentum=0.9)),
        None,
        against_program,
    ),
    Case(
        "unrolled Adam",
        unrolled(optax.adam(0.1, eps_root=1e-16)),
        None,
        against_program,
    ),
    Case(
        "unrolled, the last 20 of 40 steps",
        unrolled(optax.sgd(0.3), 40, last_steps=20),
        None,
        against_program,
    ),
    Case("weights of losses", weighed_by_losses, None, against_program),
    Case("MAML", tasks(mlox.Unrolled()), None, against_program),
    Case("first-order MAML", tasks(mlox.Detached()), None, against_first_order),
    Case("implicit MAML", tasks(mlox.Implicit(), prox=1.0, steps=60)),
    Case("dropout, unrolled", dropout(mlox.Unrolled(), 10), None, against_program),
    Case("a warm-up that is over", warmed_up),
    Case("a state that a run has reached", trained),
    Case("batches that are sampled", sampled),
]
