"""A small classifier of images, for the examples."""

from typing import Any

import flax.linen as nn
import jax
import optax
from _data import Pair


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(200)(images.reshape(len(images), -1)))
        return nn.Dense(10)(hidden)


classifier = Classifier()


def image_losses(params: Any, batch: Pair) -> jax.Array:
    logits: Any = classifier.apply(params, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
