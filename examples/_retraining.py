"""A training by hand, many of them without some examples, and what these say."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from _data import Pair, split_with_noise, take
from scipy.stats import spearmanr

Loss = Callable[[Any, Any, Any], jax.Array]  # of parameters, a batch and weights


def load(seed: int, rows: int, images: int) -> tuple[Pair, Pair, Pair]:
    """Return digits to train on, and some to choose by and to test with."""
    split = split_with_noise("digits", noise=0.0, seed=seed)
    some = [(split.noisy, rows), (split.clean, images), (split.test, images)]
    train, valid, test = (take(pair, slice(size)) for pair, size in some)
    return train, valid, test


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(loss: Loss, tx: Any, w: Any, data: Any, v: Any) -> tuple[Any, Any]:
    """Return the parameters and the optimizer's state, and the path that led there.

    The path is the parameters after each step; it is not stored where it is not used.
    """

    def step(carry: Any, batch: Any) -> Any:
        w, state = carry
        updates, state = tx.update(jax.grad(loss)(w, batch, v), state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    return jax.lax.scan(step, (w, tx.init(w)), data)


def leave_out(
    rng: np.random.Generator, rows: int, part: float, subsets: int
) -> np.ndarray:
    """Return [subsets, rows]: 0 for a random part of the rows, otherwise 1."""
    each = np.tile(np.arange(rows) >= part * rows, (subsets, 1))
    return rng.permuted(each, axis=1).astype(float)


def draw_order(
    rng: np.random.Generator, rows: int, steps: int, size: int
) -> np.ndarray:
    """Return [steps, size]: which rows each batch has, all of them in each epoch."""
    epochs = [rng.permutation(rows) for _ in range(-(-steps * size // rows))]
    return np.concatenate(epochs)[: steps * size].reshape(steps, size)


def move_ones(
    retrain: Callable[[np.ndarray], Any], rows: int, some: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the weights of the first rows do, one at a time, [images, some].

    The slopes of the losses by central differences, and their changes without the row.
    """
    one, h = np.eye(rows)[:some], 1e-4
    moves = np.concatenate([h * one, -h * one, -one, 0 * one[:1]])
    found = np.asarray(retrain(1 + moves)).T
    up, down, out = (found[:, i * some : (i + 1) * some] for i in range(3))
    return (up - down) / (2 * h), out - found[:, -1:]


def lds(tau: np.ndarray, kept: np.ndarray, found: np.ndarray) -> float:
    """Return the linear datamodeling score.

    The Spearman correlation over subsets of the predicted losses, kept @ tau, with
    those found, [subsets, images], averaged over images.
    """
    pairs = zip((kept @ tau.T).T, found.T, strict=True)
    return float(np.mean([spearmanr(a, b).statistic for a, b in pairs]))
