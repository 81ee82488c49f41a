"""Meta-Weight-Net beside Betty: a net of an example's loss gives its weight.

The classifiers are smooth, because a kink between the two points of DARTS' difference
makes the last digits of the parameters decide on which side of it they are.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from _comparison import Comparison, Part

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


def comparisons() -> Iterator[Comparison]:
    """List the classifiers, methods and lengths."""
    small, large = (functools.partial(mlp, hidden=h) for h in ((200,), (512, 512)))
    for make, sizes in ((small, "784-200-10"), (large, "784-512-512-10")):
        for unroll, length in ((1, 60), (5, 30)):
            yield _comparison("MLP", sizes, make, unroll, length, 2.0)
    yield _comparison("MLP", "784-200-10", small, 1, 60, 2.0, "Neumann 3", NEUMANN)
    convolutional = functools.partial(cnn, channels=32, batch=16)
    for unroll, length in ((1, 30), (5, 10)):
        yield _comparison(
            "CNN", "32 and 64 kernels", convolutional, unroll, length, 0.9
        )
    attending = functools.partial(transformer, layers=4, width=256, batch=8, length=32)
    yield _comparison("transformer", "4 x 256", attending, 1, 3, 1.5)


def _comparison(
    model: str,
    sizes: str,
    make: Callable[..., tuple[Arrays, Draw]],
    unroll: int,
    length: int,
    at_least: float,
    method: str = "DARTS",
    betty: Mapping[str, Any] = DARTS,
) -> Comparison:
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
        parts=(
            Part("mlox", "jax", "peers.reweighting_mlox"),
            Part(
                "by hand",
                "jax",
                "peers.reweighting_hand",
                at_most=1.05,
                remark="the floor of products and convolutions as XLA computes them",
            ),
            Part(
                "mlox, Engine.run",
                "jax",
                "peers.reweighting_mlox",
                {"run": True},
                remark="a sample is one call, with all checks of its arguments",
            ),
            Part("Betty", "betty", "peers.reweighting_betty", at_least=at_least),
        ),
        steps=4,
        tolerance=1e-3,
        length=length,
        quick=unroll == 1 and (model, sizes, method) == ("MLP", "784-200-10", "DARTS"),
    )


COMPARISONS = tuple(comparisons())
