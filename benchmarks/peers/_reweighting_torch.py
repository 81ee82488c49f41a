"""The classifiers of reweighting.py in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from peers._parameters_torch import Batch, Params
from torch.nn import functional


def losses(model: str) -> Callable[[Params, Batch], torch.Tensor]:
    """Return (params, batch) -> the loss of each example."""
    logits = {"MLP": dense, "CNN": cnn, "transformer": transformer}[model]

    def each(params: Params, batch: Batch) -> torch.Tensor:
        x, label = batch
        return functional.cross_entropy(logits(params, x), label, reduction="none")

    return each


def dense(params: Params, x: torch.Tensor) -> torch.Tensor:
    """Apply layers with tanh between them."""
    for i in range(len(params) // 2):
        x = torch.addmm(params[f"b{i}"], torch.tanh(x) if i else x, params[f"w{i}"])
    return x


def cnn(params: Params, x: torch.Tensor) -> torch.Tensor:
    """Convolve, take maxima over squares of 2 x 2, and apply tanh, twice."""
    for name in ("kernel0", "kernel1"):
        x = functional.conv2d(x, params[name], padding=1)
        x = torch.tanh(functional.max_pool2d(x, 2))
    return torch.addmm(params["b"], x.flatten(1), params["w"])


def transformer(params: Params, tokens: torch.Tensor) -> torch.Tensor:
    """Attend and transform, each after a normalization, and classify the mean."""
    x = functional.embedding(tokens, params["embedding"]) + params["positions"]
    layers = sum(name.startswith("qkv") for name in params)
    n, length, width = x.shape
    heads = 4
    for i in range(layers):
        qkv = normalized(x) @ params[f"qkv{i}"]
        q, k, v = qkv.view(n, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        x = x + mixed @ params[f"out{i}"]
        hidden = functional.gelu(normalized(x) @ params[f"up{i}"], approximate="tanh")
        x = x + hidden @ params[f"down{i}"]
    return torch.addmm(params["b"], normalized(x).mean(1), params["w"])


def normalized(x: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:])


def lay_out(given: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Lay images and kernels out as PyTorch does, and the dense layer to match."""
    found = dict(given)
    if model != "CNN":
        return found
    for name in ("lower", "upper"):
        key = f"{name} batches/x"
        found[key] = np.moveaxis(given[key], -1, 2).copy()
    for i in range(2):
        key = f"lower params/kernel{i}"
        found[key] = given[key].transpose(3, 2, 0, 1).copy()
    w = given["lower params/w"]
    channels = given["lower params/kernel1"].shape[-1]
    size = round((len(w) // channels) ** 0.5)
    rows = w.reshape(size, size, channels, -1).transpose(2, 0, 1, 3)
    found["lower params/w"] = rows.reshape(w.shape).copy()
    return found
