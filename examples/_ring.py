"""A ring of eight Gaussians, how many of them are covered, and a picture."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _picture import panels, save

import mlox

MODES, SPREAD, BATCH, NOISE = 8, 0.05, 64, 16
ANGLES = 2 * jnp.pi * jnp.arange(MODES) / MODES
CENTERS = 2 * jnp.stack([jnp.cos(ANGLES), jnp.sin(ANGLES)], axis=1)


def draw(params: Any, ctx: mlox.Context) -> tuple[jax.Array, jax.Array]:
    """Draw noise, and points of the ring."""
    rng: Any = ctx.rng
    keys = jax.random.split(rng, 3)
    modes = jax.random.randint(keys[0], (BATCH,), 0, MODES)
    points = CENTERS[modes] + SPREAD * jax.random.normal(keys[1], (BATCH, 2))
    return jax.random.normal(keys[2], (BATCH, NOISE)), points


def modes_of(points: np.ndarray) -> int:
    """Count the modes that have 1 % of the points within 4 standard deviations."""
    distances = np.linalg.norm(points[:, None] - CENTERS, axis=2)
    return int(((distances < 4 * SPREAD).mean(axis=0) > 0.01).sum())


def picture(found: dict[str, np.ndarray], cycles: int, file: str) -> None:
    """Draw the points of the first seed: a row for each time, a column for each way."""
    looks = len(next(iter(found.values())))
    figure, rows = panels(looks, len(found), sharex=True, sharey=True)
    for i, row in enumerate(rows):
        row[0].set_ylabel(f"{cycles * (i + 1) // looks} steps")
        for axes, (way, times) in zip(row, found.items(), strict=True):
            points = times[i, 0]
            axes.scatter(*CENTERS.T, s=60, facecolors="none", edgecolors="tab:orange")
            axes.scatter(*points[:400].T, s=1, color="tab:blue")
            axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])
            axes.set_title(f"{way}: {modes_of(points)} modes", fontsize=11)
    save(figure, file)
