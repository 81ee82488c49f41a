"""MAML on glyphs with four convolutions: chunks of tasks beside a Python loop by hand.

Run with `python benchmarks/conv_maml.py`; `--quick` takes 8 filters and fewer samples,
`--all` adds grouped convolutions, which take long.
5-way, 1-shot, 15 queries of each class, 4 tasks, 5 inner steps of SGD, images of 28 x
28, four blocks of a convolution to 64 channels, batch norm with the statistics of the
batch, ReLU and max-pooling: the network of Finn, Abbeel and Levine, ICML 2017. The
images are noise, since their content makes nothing faster.

By hand: a Python loop over tasks, each with the gradient through five steps, jitted
together. A convolution is that of XLA ("lax"), or nine slices and a matrix product
("patches").
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import _timing
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

PyTree = Any
Convolution = Callable[[jax.Array, jax.Array], jax.Array]
TASKS, STEPS, CLASSES, QUERIES = 4, 5, 5, 15
INNER, OUTER = optax.sgd(0.01), optax.adam(1e-3)


def lax(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Convolve [b, h, w, c] with [3, 3, c, d], by XLA."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, weights, (1, 1), "SAME", dimension_numbers=layout
    )


def patches(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Convolve [b, h, w, c] with [3, 3, c, d], by a product with the patches."""
    _, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    slices = [
        padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)
    ]
    return jnp.concatenate(slices, -1) @ weights.reshape(9 * channels, -1)


def network(params: PyTree, x: jax.Array, convolve: Convolution) -> jax.Array:
    for weights, scale, bias in params["blocks"]:
        x = convolve(x, weights)
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        x = jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + 1e-3) * scale + bias)
        # The gradient of `lax.reduce_window` is seven times slower than that of `max`.
        b, h, w, c = x.shape
        x = x[:, : h // 2 * 2, : w // 2 * 2]
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
    return x.reshape(len(x), -1) @ params["head"] + params["bias"]


def start(filters: int) -> PyTree:
    """Draw the first weights."""
    keys = jax.random.split(jax.random.key(0), 5)
    blocks = [
        (
            jax.random.normal(key, (3, 3, c, filters)) * (2 / (9 * c)) ** 0.5,
            jnp.ones(filters),
            jnp.zeros(filters),
        )
        for key, c in zip(keys[:4], (1, filters, filters, filters), strict=True)
    ]
    head = 0.1 * jax.random.normal(keys[4], (filters, CLASSES))
    return {"blocks": blocks, "head": head, "bias": jnp.zeros(CLASSES)}


def make_error(convolve: Convolution) -> Callable[..., jax.Array]:
    def error(params: PyTree, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits = network(params, batch[0], convolve)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return losses.mean()

    return error


def draw(examples: int) -> tuple[jax.Array, jax.Array]:
    images = np.random.default_rng(examples).normal(
        size=(TASKS, CLASSES * examples, 28, 28, 1)
    )
    labels = np.tile(np.repeat(np.arange(CLASSES), examples), (TASKS, 1))
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels)


def with_mlox(convolve: Convolution, at_once: int | None, params: PyTree) -> Any:
    """Return step, state and batches."""
    error = make_error(convolve)
    init = mlox.Problem.create(
        name="init",
        params=params,
        tx=OUTER,
        loss_fn=lambda params, batch, ctx: ctx.fit(batch).mean(),
    )
    fit = mlox.Problem.create(
        name="fit",
        params=params,
        tx=INNER,
        loss_fn=lambda params, batch, ctx: error(params, batch),
        apply_fn=error,
        reset=lambda params, ctx: ctx.init.params,
        method=mlox.Unrolled(),
        unroll_steps=STEPS,
        tasks=TASKS,
        tasks_at_once=at_once,
    )
    engine = mlox.Engine([init, fit], u2l={init: [fit]}, l2u={fit: [init]})
    support, query = draw(1), draw(QUERIES)
    batches = {
        "init": jax.tree.map(lambda x: x[None], query),
        "fit": jax.tree.map(lambda x: jnp.broadcast_to(x, (STEPS, *x.shape)), support),
    }
    return engine.step, engine.init(), batches


def by_hand(convolve: Convolution, params: PyTree) -> Any:
    """Return step, state and batches."""
    error = make_error(convolve)

    def of_task(params: PyTree, support: PyTree, query: PyTree) -> jax.Array:
        opt_state = INNER.init(params)
        for _ in range(STEPS):
            grads = jax.grad(error)(params, support)
            updates, opt_state = INNER.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
        return error(params, query)

    def step(state: PyTree, batches: PyTree) -> tuple[PyTree, jax.Array]:
        params, opt_state = state
        found = [
            jax.value_and_grad(of_task)(
                params, *jax.tree.map(lambda x, i=i: x[i], batches)
            )
            for i in range(TASKS)
        ]
        loss, grads = jax.tree.map(lambda *parts: sum(parts) / TASKS, *found)
        updates, opt_state = OUTER.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return step, (params, OUTER.init(params)), (draw(1), draw(QUERIES))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time MAML with convolutions.")
    parser.add_argument("--quick", action="store_true", help="be small")
    parser.add_argument("--all", action="store_true", help="all tasks at once by lax")
    args = parser.parse_args()
    quick = args.quick
    params = start(8 if quick else 64)
    sides = {
        "a loop by hand, lax": by_hand(lax, params),
        "tasks_at_once=1, lax": with_mlox(lax, 1, params),
        "tasks_at_once=1, patches": with_mlox(patches, 1, params),
        "all at once, patches": with_mlox(patches, None, params),
    }
    if args.all:
        sides["all at once, lax"] = with_mlox(lax, None, params)
    copied = {n: (f, jax.tree.map(jnp.copy, s), b) for n, (f, s, b) in sides.items()}
    made = {n: _timing.compiled(*side) for n, side in copied.items()}
    runs = [
        _timing.repeated(made[n].program, state, batches)
        for n, (_, state, batches) in copied.items()
    ]
    seconds = np.array(_timing.alternated(runs, 1.0 if quick else 60.0))[:, :, 1]
    rows = [
        [
            name,
            f"{made[name].seconds.processor:.0f} s",
            _timing.duration(float(np.median(seconds[:, i]))),
            f"{np.median(seconds[:, i] / seconds[:, 0]):.2f}",
            f"{made[name].temporaries / 2**20:.0f} MiB",
        ]
        for i, name in enumerate(sides)
    ]
    head = ("way", "trace and compile", "one step", "to by hand", "temporaries")
    print(_timing.table(head, rows))


if __name__ == "__main__":
    main()
