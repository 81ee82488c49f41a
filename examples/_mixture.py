"""A mixture of digits and of four kinds of digits that went wrong."""

from typing import NamedTuple

import numpy as np
from _data import Pair, split_with_noise

KINDS = ("as written", "mirrored", "wrong label", "noise", "blank")
SHARES = (0.4, 0.15, 0.15, 0.15, 0.15)


class Mixture(NamedTuple):
    """Rows to rate, with the kind of each, and clean validation and test rows."""

    train: Pair
    kind: np.ndarray
    valid: Pair
    test: Pair


def load_mixture(seed: int, pool: int) -> Mixture:
    """Return MNIST digits of 28 / pool pixels a side, 3500 of them in a mixture.

    Mirrored digits keep their label, and so does noise, which has nothing of the digit.
    All blank images are labelled 0, as a missing scan with a default.
    """
    pairs = split_with_noise("mnist", noise=0.0, seed=seed)[:3]
    (images, labels), valid, test = [(_shrink(x, pool), y) for x, y in pairs]
    rng = np.random.default_rng(seed)
    kind = rng.choice(len(KINDS), len(labels), p=SHARES)
    shift = rng.integers(1, 10, len(labels), dtype=np.int32)
    images[kind == 1] = images[kind == 1][:, :, ::-1]
    labels = np.where(kind == 2, (labels + shift) % 10, labels)
    images[kind == 3] = rng.random(images[kind == 3].shape)
    images[kind == 4] = 0.0
    return Mixture((images, np.where(kind == 4, 0, labels)), kind, valid, test)


def _shrink(images: np.ndarray, pool: int) -> np.ndarray:
    side = 28 // pool
    return images.reshape(len(images), side, pool, side, pool).mean(axis=(2, 4))
