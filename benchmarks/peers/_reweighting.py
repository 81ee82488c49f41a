"""The jobs of reweighting.py in JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _jobs import Job
from peers import _two_levels

Params = Mapping[str, jax.Array]
PyTree = Any


def make_job(given: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Job:
    """Make the job with the model of the settings."""
    each = losses(settings["model"])

    def lower_loss(lower: Params, upper: Params, batch: PyTree) -> PyTree:
        found = each(lower, batch)
        scores = dense(upper, jax.lax.stop_gradient(found)[:, None])[:, 0]
        return {"loss": jnp.mean(jax.nn.sigmoid(scores) * found)}

    def upper_loss(lower: Params, upper: Params, batch: PyTree) -> PyTree:
        return {"loss": jnp.mean(each(lower, batch))}

    unroll = settings["unroll"]
    data = data_of(given)
    batches = {
        name: jax.tree.map(lambda *parts: np.stack(parts), *data[name][:count])
        for name, count in (("lower", unroll), ("upper", 1))
    }
    return _two_levels.make_job(given, settings, (lower_loss, upper_loss), batches)


def losses(model: str) -> Callable[[Params, PyTree], jax.Array]:
    """Return (params, batch) -> the loss of each example."""
    logits = {"MLP": dense, "CNN": cnn, "transformer": transformer}[model]

    def each(params: Params, batch: PyTree) -> jax.Array:
        x, label = batch
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), label)

    return each


def data_of(given: Mapping[str, np.ndarray]) -> dict[str, list[PyTree]]:
    """List the batches of each problem."""
    return {
        name: list(
            zip(*(given[f"{name} batches/{part}"] for part in "xy"), strict=True)
        )
        for name in ("lower", "upper")
    }


def dense(params: Params, x: jax.Array) -> jax.Array:
    """Apply layers with tanh between them."""
    for i in range(len(params) // 2):
        x = (jnp.tanh(x) if i else x) @ params[f"w{i}"] + params[f"b{i}"]
    return x


def cnn(params: Params, x: jax.Array) -> jax.Array:
    """Convolve, take maxima over squares of 2 x 2, and apply tanh, twice.

    The maxima are of a reshaped array: XLA is slow at windows.
    """
    for name in ("kernel0", "kernel1"):
        kernel, layout = params[name], ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=layout
        )
        n, height, width, channels = x.shape
        squares = x.reshape(n, height // 2, 2, width // 2, 2, channels)
        x = jnp.tanh(squares.max((2, 4)))
    return x.reshape(len(x), -1) @ params["w"] + params["b"]


def transformer(params: Params, tokens: jax.Array) -> jax.Array:
    """Attend and transform, each after a normalization, and classify the mean."""
    x = params["embedding"][tokens] + params["positions"]
    n, length, width = x.shape
    size = 64  # of a head
    for i in range(sum(name.startswith("qkv") for name in params)):
        qkv = normalize(x) @ params[f"qkv{i}"]
        parts = qkv.reshape(n, length, 3, width // size, size)
        q, k, v = parts.transpose(2, 0, 3, 1, 4)
        scores = jax.nn.softmax(q @ k.swapaxes(-1, -2) * size**-0.5)
        x = x + (scores @ v).swapaxes(1, 2).reshape(x.shape) @ params[f"out{i}"]
        hidden = jax.nn.gelu(normalize(x) @ params[f"up{i}"], approximate=True)
        x = x + hidden @ params[f"down{i}"]
    return normalize(x).mean(1) @ params["w"] + params["b"]


def normalize(x: jax.Array) -> jax.Array:
    """Give each vector a mean of zero and a variance of one."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5)
