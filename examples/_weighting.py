"""The networks of data_cleaning.py: a classifier, and a weight for each loss."""

import flax.linen as nn
import jax


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        hidden = nn.relu(nn.Dense(256)(images.reshape(len(images), -1)))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(hidden))


class Weighting(nn.Module):
    @nn.compact
    def __call__(self, losses: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(100)(losses[:, None]))
        # All weights are equal at the start.
        last = nn.Dense(1, kernel_init=nn.initializers.zeros)
        return nn.sigmoid(last(hidden))[:, 0]
