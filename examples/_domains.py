"""Source digits of five kinds, of which one helps most, and those of the target."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from _data import load

KINDS = ("as written", "inverted", "mirrored", "turned", "wrong labels")


def load_domains(
    seed: int, each: int, rows: int
) -> tuple[Any, Any, Any, Any, np.ndarray]:
    """Return source, target rows to train, to validate and to test, and the kinds.

    The source has `each` digits of each kind, the target other digits, faint and with
    noise. Images are rows of 64 numbers.
    """
    rng = np.random.default_rng(seed)
    images, labels, _ = load("digits")
    order = rng.permutation(len(images))
    images, labels = images[order], labels[order]
    size = each * len(KINDS)
    small, y, kind = images[:size], labels[:size], np.arange(size) % len(KINDS)
    views = (small, 1 - small, small[:, :, ::-1], np.rot90(small, axes=(1, 2)), small)
    small = np.stack(views)[kind, np.arange(size)]
    y = np.where(kind == 4, (y + rng.integers(1, 10, size)) % 10, y)
    faint = 0.5 * images[size:] + 0.25 * rng.random(images[size:].shape)
    cuts = [rows, 2 * rows]
    parts = zip(np.split(faint, cuts), np.split(labels[size:], cuts), strict=True)
    as_rows = lambda x, y: (
        jnp.asarray(x.reshape(-1, 64), jnp.float32),
        jnp.asarray(y, jnp.int32),
    )
    return as_rows(small, y), *(as_rows(*part) for part in parts), kind
