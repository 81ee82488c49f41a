"""A loop of one's own whose types editors know; basedpyright checks this file."""

from __future__ import annotations

import pathlib
from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox


def train(folder: pathlib.Path, cycles: int) -> dict[str, mlox.Problem]:
    """Step, log and save, with every type known and none declared."""
    problem = mlox.Problem.create(
        name="x",
        params=jnp.ones(()),
        tx=optax.sgd(0.25),
        loss_fn=lambda params, batch, ctx: (params - batch) ** 2,
    )
    engine = mlox.Engine([problem])
    state, step = engine.init(), engine.compile()
    batches = {"x": jnp.zeros(1)}
    compiled = step.lower(state, batches).compile()
    assert_type(compiled, jax.stages.Compiled)
    with mlox.json_logger(folder / "metrics.jsonl") as logger:
        for cycle in range(1, cycles + 1):
            state, metrics = step(state, batches)
            assert_type(state, dict[str, mlox.Problem])
            assert_type(metrics, dict[str, jax.Array])
            logger.log(cycle, {n: float(x.mean()) for n, x in metrics.items()})
        logger.note(cycles, "done")
        assert_type(mlox.save(folder, state, cycle=cycles), pathlib.Path)
    restored = mlox.restore(folder, engine.init())
    assert_type(restored, dict[str, mlox.Problem])
    ended, history = engine.run(restored, {"x": [0.0]}, 1, loggers=())
    assert_type(ended, dict[str, mlox.Problem])
    assert_type(history, dict[str, np.ndarray])
    after, _ = engine.step(ended, batches)
    assert_type(after["x"].step, jax.Array)
    return after
