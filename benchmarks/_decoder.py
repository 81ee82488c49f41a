"""A decoder in plain JAX, and weights of its training sequences as a bilevel job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

PyTree = Any
ADAM = optax.adam(1e-3, eps_root=1e-16)


class Shape(NamedTuple):
    """The sizes of a decoder and of its batches.

    Attributes:
        width: The length of the vectors.
        layers: The number of blocks.
        heads: The heads of the attention.
        words: The number of different words.
        length: The words of a sequence.
        rows: The sequences of a batch.
    """

    width: int
    layers: int
    heads: int
    words: int
    length: int
    rows: int

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        tables = self.width * (2 * self.words + self.length)
        return tables + self.layers * (12 * self.width**2 + 2 * self.width)


def init(shape: Shape) -> PyTree:
    """Return parameters; those of all blocks are stacked."""
    keys = iter(jax.random.split(jax.random.key(0), 7))
    wide, deep = shape.width, shape.layers

    def normal(*sizes: int) -> jax.Array:
        return 0.02 * jax.random.normal(next(keys), sizes, jnp.float32)

    return {
        "words": normal(shape.words, wide),
        "places": normal(shape.length, wide),
        "blocks": {
            "qkv": normal(deep, wide, 3 * wide),
            "out": normal(deep, wide, wide),
            "up": normal(deep, wide, 4 * wide),
            "down": normal(deep, 4 * wide, wide),
            "gains": jnp.ones((deep, 2, wide), jnp.float32),
        },
        "scores": normal(wide, shape.words),
    }


def losses(params: PyTree, tokens: jax.Array, shape: Shape, **how: bool) -> jax.Array:
    """Return the loss of each sequence; the arguments are those of `scores`."""
    return losses_of_scores(scores(params, tokens, shape, **how), tokens)


def losses_of_scores(found: jax.Array, tokens: jax.Array) -> jax.Array:
    """Return the loss of each sequence, from the scores of its words."""
    each = optax.softmax_cross_entropy_with_integer_labels(found, tokens[:, 1:])
    return each.mean(-1)


def scores(
    params: PyTree,
    tokens: jax.Array,
    shape: Shape,
    *,
    remat: bool = False,
    written_out: bool = False,
) -> jax.Array:
    """Return the scores of all words, at each place of each sequence.

    Args:
        params: See `init`.
        tokens: [rows, length + 1] words.
        shape: The sizes.
        remat: Whether reverse mode recomputes the inside of a block.
        written_out: Whether the blocks are written out, rather than looped over.
    """
    body = lambda x, one: (_block(one, x, shape.heads), None)
    x = params["words"][tokens[:, :-1]] + params["places"][None]
    x, _ = jax.lax.scan(
        jax.checkpoint(body) if remat else body,
        x,
        params["blocks"],
        unroll=shape.layers if written_out else 1,
    )
    return x @ params["scores"]


def _block(params: PyTree, x: jax.Array, heads: int) -> jax.Array:
    parts = jnp.split(_normalized(x, params["gains"][0]) @ params["qkv"], 3, -1)
    q, k, v = (part.reshape(*part.shape[:-1], heads, -1) for part in parts)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.float32(np.sqrt(q.shape[-1]))
    length = x.shape[1]
    past = jnp.tril(jnp.ones((1, 1, length, length), bool))
    attention = jax.nn.softmax(jnp.where(past, scores, jnp.float32(-1e9)))
    x = x + jnp.einsum("bhqk,bkhd->bqhd", attention, v).reshape(x.shape) @ params["out"]
    hidden = jax.nn.gelu(_normalized(x, params["gains"][1]) @ params["up"])
    return x + hidden @ params["down"]


def _normalized(x: jax.Array, gain: jax.Array) -> jax.Array:
    size = jnp.mean(x**2, -1, keepdims=True)
    return gain[None, None] * x * jax.lax.rsqrt(size + np.float32(1e-6))


def batches(shape: Shape, steps: int) -> dict[str, PyTree]:
    """Return random sequences for some steps of the lower, and one of the upper.

    Each sequence has a number, by which it finds its weight.
    """

    def draw(count: int, seed: int) -> PyTree:
        sizes = (count, shape.rows, shape.length + 1)
        words = np.random.default_rng(seed).integers(0, shape.words, sizes, np.int32)
        numbers = jnp.arange(count * shape.rows, dtype=jnp.int32)
        return {"t": jnp.asarray(words), "i": numbers.reshape(count, shape.rows)}

    return {"weights": draw(1, 0), "fit": draw(steps, 1)}


def engine(
    shape: Shape,
    method: Any,
    steps: int,
    *,
    params: PyTree | None = None,
    each: Callable[[PyTree, jax.Array], jax.Array] | None = None,
    outputs: Callable[[PyTree, jax.Array], jax.Array] | None = None,
    tx: optax.GradientTransformation = ADAM,
    **options: Any,
) -> mlox.Engine:
    """Return one weight for each sequence over a decoder that is trained by Adam.

    Args:
        shape: The sizes.
        method: How the decoder is differentiated.
        steps: Of the decoder for each step of the weights.
        params: Of the decoder; may be shapes and dtypes alone, to compile.
        each: (params, tokens) -> the loss of each sequence; see `losses`.
        outputs: (params, tokens) -> scores, if the decoder's loss is to be composed of
            them, for `mlox.GaussNewton`; see `scores`.
        tx: The optimizer of the decoder.
        **options: Of the engine.
    """
    each = each or (lambda params, tokens: losses(params, tokens, shape))

    def weighted(found: jax.Array, batch: PyTree, ctx: mlox.Context) -> jax.Array:
        return jnp.mean(jax.nn.sigmoid(ctx["weights"].params[batch["i"]]) * found)

    fit_loss = lambda params, batch, ctx: weighted(each(params, batch["t"]), batch, ctx)
    if outputs is not None:
        fit_loss = mlox.Composed(
            lambda params, batch, ctx: outputs(params, batch["t"]),
            lambda found, batch, ctx: weighted(
                losses_of_scores(found, batch["t"]), batch, ctx
            ),
        )
    weights = mlox.Problem.create(
        name="weights",
        params=jnp.zeros(steps * shape.rows, jnp.float32),
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: jnp.mean(each(ctx.fit.params, batch["t"])),
    )
    fit = mlox.Problem.create(
        name="fit",
        params=init(shape) if params is None else params,
        tx=tx,
        loss_fn=fit_loss,
        method=method,
        unroll_steps=steps,
    )
    return mlox.Engine(
        [weights, fit], {"weights": ["fit"]}, {"fit": ["weights"]}, **options
    )
