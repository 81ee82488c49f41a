"""Meta-Weight-Net beside Betty: a net of an example's loss gives its weight.

The classifiers are smooth, because a kink between the two points of DARTS' difference
makes the last digits of the parameters decide on which side of it they are.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from _comparison import Comparison, Part
from peers._ways import by_hand, by_run, from_cache

Arrays = dict[str, np.ndarray]
Draw = Callable[[float], tuple[np.ndarray, np.ndarray]]
CLASSES, BATCHES, NOISE = 10, 8, 0.4
DARTS = {"type": "darts", "darts_alpha": 0.01}
NEUMANN = {"type": "neumann", "neumann_iterations": 3, "neumann_alpha": 0.05}


def given(make: Callable[[np.random.Generator], tuple[Arrays, Draw]]) -> Arrays:
    """Draw parameters, and batches of which the labels of the lower's are noisy."""
    generator = np.random.default_rng(0)
    lower, draw = make(generator)
    upper = _dense(generator, (1, 100, 1))
    found = {f"lower params/{name}": array for name, array in lower.items()}
    found |= {f"upper params/{name}": array for name, array in upper.items()}
    for name, noise in (("lower", NOISE), ("upper", 0.0)):
        x, y = zip(*(draw(noise) for _ in range(BATCHES)), strict=True)
        found |= {f"{name} batches/x": np.stack(x), f"{name} batches/y": np.stack(y)}
    return found


def mlp(
    generator: np.random.Generator, hidden: tuple[int, ...], batch: int = 100
) -> tuple[Arrays, Draw]:
    """Make an MLP, and its batches."""
    params = _dense(generator, (784, *hidden, CLASSES))
    return params, _images(generator, batch, (784,))


def cnn(
    generator: np.random.Generator, channels: int, batch: int
) -> tuple[Arrays, Draw]:
    """Make kernels of 3 x 3 and a dense layer, and their batches."""
    params = {}
    for i, shape in enumerate(((1, channels), (channels, 2 * channels))):
        kernel = generator.normal(size=(3, 3, *shape)) / np.sqrt(9 * shape[0])
        params[f"kernel{i}"] = np.float32(kernel)
    last = _dense(generator, (7 * 7 * 2 * channels, CLASSES))
    params |= {"w": last["w0"], "b": last["b0"]}
    return params, _images(generator, batch, (28, 28, 1))


def transformer(
    generator: np.random.Generator,
    layers: int,
    width: int,
    batch: int,
    length: int,
    vocabulary: int = 1000,
) -> tuple[Arrays, Draw]:
    """Make a transformer, and batches of tokens, some of which tell the class."""

    def matrix(*shape: int) -> np.ndarray:
        return np.float32(generator.normal(size=shape) / np.sqrt(shape[0]))

    params = {
        "embedding": np.float32(generator.normal(size=(vocabulary, width))),
        "positions": np.float32(generator.normal(size=(length, width))),
        "w": matrix(width, CLASSES),
        "b": np.zeros(CLASSES, np.float32),
    }
    for i in range(layers):
        params |= {
            f"qkv{i}": matrix(width, 3 * width),
            f"out{i}": matrix(width, width),
            f"up{i}": matrix(width, 4 * width),
            f"down{i}": matrix(4 * width, width),
        }
    favoured = generator.integers(vocabulary, size=(CLASSES, 20))

    def draw(noise: float) -> tuple[np.ndarray, np.ndarray]:
        label, noisy = _labels(generator, batch, noise)
        shape = (batch, length)
        own = np.take_along_axis(favoured[label], generator.integers(20, size=shape), 1)
        others = generator.integers(vocabulary, size=shape)
        tokens = np.where(generator.random(shape) < 0.3, own, others)
        return np.int32(tokens), noisy

    return params, draw


def _images(generator: np.random.Generator, batch: int, shape: tuple[int, ...]) -> Draw:
    centres = generator.normal(size=(CLASSES, *shape))

    def draw(noise: float) -> tuple[np.ndarray, np.ndarray]:
        label, noisy = _labels(generator, batch, noise)
        x = centres[label] + generator.normal(size=(batch, *shape))
        return np.float32(x), noisy

    return draw


def _labels(
    generator: np.random.Generator, batch: int, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels, and replace some of them."""
    label, other = generator.integers(CLASSES, size=(2, batch))
    noisy = np.where(generator.random(batch) < noise, other, label)
    return label, np.int32(noisy)


def _dense(generator: np.random.Generator, sizes: tuple[int, ...]) -> Arrays:
    found = {}
    for i, shape in enumerate(itertools.pairwise(sizes)):
        matrix = generator.normal(size=shape) / np.sqrt(shape[0])
        found |= {f"w{i}": np.float32(matrix), f"b{i}": np.zeros(shape[1], np.float32)}
    return found


class Classifier(NamedTuple):
    """A model, and how it is compared.

    Attributes:
        model: "MLP", "CNN" or "transformer".
        sizes: What the table calls its sizes.
        make: Draw its parameters, and make what draws its batches.
        lengths: The upper steps of one sample, by the lower steps of each.
        at_least: How much longer Betty must take.
    """

    model: str
    sizes: str
    make: Callable[[np.random.Generator], tuple[Arrays, Draw]]
    lengths: Mapping[int, int]
    at_least: float


CLASSIFIERS = (
    Classifier(
        model="MLP",
        sizes="784-200-10",
        make=functools.partial(mlp, hidden=(200,)),
        lengths={1: 60, 5: 30},
        at_least=2.0,
    ),
    Classifier(
        model="MLP",
        sizes="784-512-512-10",
        make=functools.partial(mlp, hidden=(512, 512)),
        lengths={1: 60, 5: 30},
        at_least=2.0,
    ),
    Classifier(
        model="CNN",
        sizes="32 and 64 kernels",
        make=functools.partial(cnn, channels=32, batch=16),
        lengths={1: 30, 5: 10},
        at_least=0.9,
    ),
    Classifier(
        model="transformer",
        sizes="4 x 256",
        make=functools.partial(transformer, layers=4, width=256, batch=8, length=32),
        lengths={1: 3},
        at_least=1.5,
    ),
)
SMALL = CLASSIFIERS[0]


def comparisons() -> Iterator[Comparison]:
    """List the classifiers, methods and lengths."""
    for classifier in CLASSIFIERS:
        for unroll in classifier.lengths:
            yield _comparison(classifier, unroll)
    yield _comparison(SMALL, 1, "Neumann 3", NEUMANN)


def _comparison(
    classifier: Classifier,
    unroll: int,
    method: str = "DARTS",
    betty: Mapping[str, Any] = DARTS,
) -> Comparison:
    model, sizes, make, lengths, at_least = classifier
    return Comparison(
        group="Meta-Weight-Net",
        job=f"{model} {sizes}, {method}, {unroll} lower steps",
        given=functools.partial(given, make),
        settings={
            "model": model,
            "unroll": unroll,
            "betty": betty,
            "cycles": 1,
            "loops": model != "CNN",  # XLA on CPU is slow at convolutions in loops
            "lower rate": 0.05,
            "upper rate": 0.3,
        },
        parts=tuple(_parts(unroll, at_least)),
        steps=4,
        tolerance=1e-3,
        length=lengths[unroll],
        quick=classifier is SMALL and unroll == 1 and method == "DARTS",
    )


def _parts(unroll: int, at_least: float) -> Iterator[Part]:
    mlox, hand = Part("mlox", "jax", "peers.reweighting_mlox"), "peers.reweighting_hand"
    yield mlox
    if unroll == 1:
        yield from_cache(mlox)
    yield from (by_hand(hand), by_run(mlox))
    yield Part("Betty", "betty", "peers.reweighting_betty", at_least=at_least)


COMPARISONS = tuple(comparisons())
