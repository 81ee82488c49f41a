"""A cell of a network: two nodes; each edge has one of six operations, or a mix."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

OPERATIONS = ("none", "skip", "mean pool", "max pool", "conv 1x1", "conv 3x3")
EDGES = ((0, 1), (0, 2), (1, 2))
CHANNELS, WEIGHT_DECAY = 8, 1e-3


def _shift(x: jax.Array, fill: float) -> list[jax.Array]:
    """Return the nine 3 x 3 neighbours of all pixels, each of the shape of x."""
    side = x.shape[1]
    y = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=fill)
    return [y[:, i : i + side, j : j + side] for i in range(3) for j in range(3)]


def _around(x: jax.Array) -> jax.Array:
    """Return the neighbours of each pixel, [images, side, side, 9, channels]."""
    return jnp.stack(_shift(x, 0.0), axis=3)


def _normalize(x: jax.Array) -> jax.Array:
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    return (x - mean) / jnp.sqrt(x.var(axis=(1, 2, 3), keepdims=True) + 1e-3)


def _edge(w: Any, mix: jax.Array, x: jax.Array) -> jax.Array:
    """Mix the operations of one edge, with weights mix [operations]."""
    near, rectified = _around(x), jax.nn.relu(x)
    one = rectified @ w["one"]
    three = jnp.einsum("nhwkc,kcd->nhwd", _around(rectified), w["three"])
    # In pairs: compiled by JAX 0.12 for CPU, `max(axis=3)` has a NaN second derivative.
    largest = functools.reduce(jnp.maximum, _shift(x, -1e3))
    found = (x, near.mean(axis=3), largest)
    mixed = (*found, _normalize(one), _normalize(three))
    return sum(m * y for m, y in zip(mix[1:], mixed, strict=True))  # none is 0


def apply(w: Any, mix: jax.Array, images: jax.Array) -> jax.Array:
    """Return logits; mix is [edges, operations]."""
    nodes = [_normalize(images[..., None] @ w["stem"])]
    for last in (1, 2):
        into = [e for e, (_, end) in enumerate(EDGES) if end == last]
        parts = [_edge(w["edges"][e], mix[e], nodes[EDGES[e][0]]) for e in into]
        nodes.append(sum(parts))
    joined = jnp.concatenate(nodes[1:], axis=3)
    side = joined.shape[1] // 2
    pooled = joined.reshape(-1, side, 2, side, 2, joined.shape[3]).max(axis=(2, 4))
    return pooled.reshape(len(images), -1) @ w["head"] + w["bias"]


def initialize(key: Any) -> Any:
    keys, c = jax.random.split(key, 2 * len(EDGES) + 2), CHANNELS
    normal = lambda i, shape, fan: jax.random.normal(keys[i], shape) / fan**0.5
    edges = [
        {"one": normal(2 * e, (c, c), c), "three": normal(2 * e + 1, (9, c, c), 9 * c)}
        for e in range(len(EDGES))
    ]
    size = 2 * c * 16  # two nodes, 4 x 4 pixels after pooling
    stem, head = normal(-1, (1, c), 1), normal(-2, (size, 10), size)
    return {"edges": edges, "stem": stem, "head": head, "bias": jnp.zeros(10)}


def loss(w: Any, mix: Any, batch: Any) -> jax.Array:
    logits = apply(w, mix, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
