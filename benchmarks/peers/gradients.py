"""A step of gradient descent of a classifier alone, in JAX and in PyTorch.

    python benchmarks/all.py --only "alone"

The classifiers of reweighting.py without an upper problem, so without mlox and Betty.
Where products take all of the time, what mlox gains beside Betty is this ratio, and
what Betty's engine takes; a faster product would gain more, and settings of XLA that
choose another one are tried.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from _comparison import Comparison, Part
from peers import reweighting
from peers.reweighting import CLASSIFIERS, SMALL, Classifier

JAX = Part("JAX alone", "jax", "peers.gradients_jax")
PYTORCH = Part(
    "PyTorch alone",
    "betty",
    "peers.gradients_torch",
    remark="What mlox gains beside Betty where neither takes anything but products.",
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
        quick=classifier is SMALL,
    )


def _tried() -> Iterator[Part]:
    for name, options in SETTINGS.items():
        yield JAX._replace(name=f"JAX alone, {name}", settings={"options": options})


COMPARISONS = tuple(map(compare, CLASSIFIERS))
