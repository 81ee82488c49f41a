"""How large the jobs of accelerator.py are."""

from __future__ import annotations

from typing import NamedTuple

from _decoder import Shape


class Regression(NamedTuple):
    """The sizes of the job whose hypergradients are compared with float64.

    Attributes:
        rows: The examples of a batch, each with a weight that is learned.
        inputs: The features.
        hidden: The hidden units.
        outputs: The targets.
        steps: The steps of the lower.
    """

    rows: int
    inputs: int
    hidden: int
    outputs: int
    steps: int


class Sizes(NamedTuple):
    """The sizes of all parts.

    Attributes:
        regression: Of `correctness`.
        mlp: The width of the MLP of `speed` and `price`.
        channels: The channels of the CNN of `speed`.
        transformer: The transformer of `speed`.
        decoder: The decoder of `loops` and `price`.
        steps: The steps of the lower in `loops`.
        growing: A decoder of `largest`, to which blocks are added.
        most: The largest number of blocks that is tried there.
        limit: The bytes that a device has which does not say it.
        seconds: How long two programs are timed beside each other.
    """

    regression: Regression
    mlp: int
    channels: int
    transformer: Shape
    decoder: Shape
    steps: int
    growing: Shape
    most: int
    limit: int
    seconds: float


SIZES = {
    # A few seconds each on a CPU; the numbers say nothing of an accelerator.
    "tiny": Sizes(
        regression=Regression(rows=64, inputs=16, hidden=8, outputs=4, steps=3),
        mlp=8,
        channels=2,
        transformer=Shape(16, 1, 2, 32, 8, 2),
        decoder=Shape(16, 2, 2, 32, 16, 2),
        steps=2,
        growing=Shape(16, 1, 2, 32, 16, 2),
        most=64,
        limit=2**20,
        seconds=0.0,
    ),
    # A decoder of 98 million parameters, for a card of 80 GB.
    "full": Sizes(
        regression=Regression(rows=256, inputs=64, hidden=32, outputs=8, steps=5),
        mlp=512,
        channels=32,
        transformer=Shape(256, 4, 4, 1024, 128, 8),
        decoder=Shape(768, 12, 12, 8192, 1024, 2),
        steps=4,
        growing=Shape(2048, 1, 16, 8192, 1024, 1),
        most=512,
        limit=2**36,
        seconds=1.0,
    ),
}
