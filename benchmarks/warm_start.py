"""Products of CG per step of the upper, cold and warm, on a problem that drifts.

python benchmarks/warm_start.py
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

FEATURES, ROWS, CYCLES = 200, 400, 150
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-6)
Batch = tuple[Any, Any]


def make_rows(seed: int) -> Batch:
    """Draw rows of a classification with features of scales from 1 to 1/10."""
    draw = np.random.default_rng(seed)
    slopes = np.random.default_rng(99).normal(size=FEATURES)
    x = draw.normal(size=(ROWS, FEATURES)) * np.logspace(0, -1, FEATURES)
    return x, np.where(x @ slopes + draw.normal(size=ROWS) > 0, 1.0, -1.0)


def logistic(w: Any, batch: Batch) -> Any:
    """Return the mean logistic loss."""
    x, y = batch
    return jnp.mean(jax.nn.softplus(-y * (x @ w)))


def make_engine(method: Any, rate: float) -> mlox.Engine:
    """Learn a penalty for each feature; the lower makes ten steps per upper step."""

    def fit_loss(w: Any, batch: Batch, ctx: mlox.Context) -> Any:
        return logistic(w, batch) + 0.5 * jnp.sum(jnp.exp(ctx.penalty.params) * w**2)

    penalty = mlox.Problem.create(
        name="penalty",
        params=jnp.full(FEATURES, -6.0),
        tx=optax.adam(rate),
        loss_fn=lambda p, batch, ctx: logistic(ctx.fit.params, batch),
    )
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.zeros(FEATURES),
        tx=optax.adam(0.01),
        loss_fn=fit_loss,
        method=method,
        unroll_steps=10,
    )
    return mlox.Engine([penalty, fit], {"penalty": ["fit"]}, {"fit": ["penalty"]})


def count_products(solver: Any, rate: float, draws: int, warm: bool) -> float:
    """Return the mean products per step of the upper, after the first 50."""
    engine = make_engine(mlox.Implicit(solver, warm_start=warm), rate)
    seeds = (0, 1000)
    names = ("fit", "penalty")
    data = {
        name: [make_rows(seed + i) for i in range(draws)]
        for name, seed in zip(names, seeds, strict=True)
    }
    _, history = engine.run(
        engine.init(),
        {"penalty": data["penalty"], "fit": repeat(data["fit"], 10)},
        train_iters=CYCLES,
        log_every=1,
        loggers=(),
        progress=False,
        cycles_per_dispatch=50,  # the rows of the history are means of 50 cycles
    )
    return float(np.mean(history["penalty/fit/iterations"][1:]))


def repeat(batches: list[Batch], times: int) -> list[Batch]:
    """Return each batch so many times in a row: one for each window of the lower."""
    return [batch for batch in batches for _ in range(times)]


def main() -> None:
    """Print the table."""
    jax.config.update("jax_enable_x64", True)
    print("batches  rate   tolerance   cold   warm  warm/cold")
    for draws in (1, 10):
        for rate in (0.1, 0.01):
            for tolerance in TOLERANCES:
                solver = mlox.CG(iterations=200, tolerance=tolerance)
                count = functools.partial(count_products, solver, rate, draws)
                cold, warm = count(warm=False), count(warm=True)
                print(
                    f"{draws:7}  {rate:5}  {tolerance:9.0e}  {cold:5.1f}  {warm:5.1f}"
                    f"  {warm / cold:9.2f}"
                )


if __name__ == "__main__":
    main()
