"""A small transformer that says of which of two kinds a text is."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from _data import Pair
from _texts import WORDS


class Transformer(nn.Module):
    words: int
    width: int = 32
    blocks: int = 1

    @nn.compact
    def __call__(self, texts: jax.Array) -> jax.Array:
        there = texts > 0
        mask, start = nn.make_attention_mask(there, there), nn.initializers.normal(0.1)
        x = nn.Embed(self.words, self.width, embedding_init=start)(texts)
        x = x + self.param("places", start, (texts.shape[1], self.width))
        for _ in range(self.blocks):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=4)(y, mask=mask)
            y = nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(y)
        x = nn.LayerNorm()(x)
        count = there.sum(axis=1, keepdims=True).clip(1)
        mean = jnp.where(there[..., None], x, 0).sum(axis=1) / count
        return nn.Dense(2)(mean)


classifier = Transformer(WORDS)


def text_losses(params: Any, batch: Pair) -> jax.Array:
    logits: Any = classifier.apply(params, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])


@jax.jit
def accuracy(params: Any, pair: Pair) -> jax.Array:
    logits: Any = classifier.apply(params, pair[0])
    return (logits.argmax(axis=-1) == pair[1]).mean()
