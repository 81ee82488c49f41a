"""A step of gradient descent of a classifier alone, in JAX and in PyTorch.

    python benchmarks/all.py --only "alone"

The classifiers of reweighting.py without an upper problem, so without mlox and Betty.
Where products take all of the time, this is the most that mlox can be faster than
Betty, and the only remedy is a faster product: the settings of XLA that choose another
one are tried.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from _comparison import Comparison, Part
from peers import reweighting
from peers.reweighting import CLASSIFIERS, Classifier

JAX = Part("JAX alone", "jax", "peers.gradients_jax")
PYTORCH = Part(
    "PyTorch alone",
    "betty",
    "peers.gradients_torch",
    remark="the ratio to expect beside Betty where its engine and mlox cost nothing",
)
# What else XLA has for products on a CPU, as `compiler_options` of a program.
SETTINGS = {
    "oneDNN": {"xla_cpu_experimental_onednn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"},
    "YNNPACK": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"},
    "vectors of 512 bits": {"xla_cpu_prefer_vector_width": 512},
}


def compare(classifier: Classifier) -> Comparison:
    """Compare a classifier."""
    return Comparison(
        group="A gradient alone",
        job=f"{classifier.model} {classifier.sizes}",
        given=functools.partial(reweighting.given, classifier.make),
        settings={"model": classifier.model, "rate": 0.05},
        parts=(JAX, PYTORCH, *_tried()),
        steps=4,
        tolerance=1e-4,
        length=2 * classifier.lengths[1],
    )


def _tried() -> Iterator[Part]:
    for name, options in SETTINGS.items():
        yield JAX._replace(name=f"JAX alone, {name}", settings={"options": options})


COMPARISONS = tuple(map(compare, CLASSIFIERS))
