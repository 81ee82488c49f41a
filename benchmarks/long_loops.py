"""Memory and time of hypergradients through long inner loops.

python benchmarks/long_loops.py [--steps 4096] [--run]

Temporaries are those of the compiled program. With --run also the CPU time, the median
of three calls in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import _timing
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

Job = tuple[mlox.Engine, dict[str, Any]]


def network(method: Any, steps: int) -> Job:
    """Weigh classes for an MLP of 0.53 million parameters, trained by Adam."""
    sizes = (256, 512, 768, 10)
    keys = jax.random.split(jax.random.key(0), len(sizes))
    params = [
        {"w": jax.random.normal(k, (a, b)) / np.sqrt(a), "b": jnp.zeros(b)}
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=False)
    ]

    def losses(layers: Any, batch: Any) -> jax.Array:
        x = batch["x"]
        for layer in layers[:-1]:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        scores = x @ layers[-1]["w"] + layers[-1]["b"]
        return optax.softmax_cross_entropy_with_integer_labels(scores, batch["y"])

    def inner(params: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
        weights = jnp.exp(ctx["weights"].params[batch["y"]])
        return jnp.mean(weights * losses(params, batch))

    def batches(count: int) -> dict[str, jax.Array]:
        draw = np.random.default_rng(0)
        x = jnp.asarray(draw.normal(size=(count, 8, 256)), jnp.float32)
        return {"x": x, "y": jnp.zeros((count, 8), jnp.int32)}

    engine = pair(jnp.zeros(10), params, inner, losses, method, steps)
    return engine, {"weights": batches(1), "fit": batches(steps)}


def transformer(method: Any, steps: int) -> Job:
    """Weigh sequences for a transformer of 1.3 million parameters."""
    wide, length, rows, words, heads = 128, 128, 8, 256, 4
    keys = iter(jax.random.split(jax.random.key(0), 99))
    normal = lambda *shape: 0.02 * jax.random.normal(next(keys), shape)
    blocks = [
        {
            "qkv": normal(wide, 3 * wide),
            "out": normal(wide, wide),
            "up": normal(wide, 4 * wide),
            "down": normal(4 * wide, wide),
            "gains": jnp.ones((2, wide)),
        }
        for _ in range(6)
    ]
    params = {
        "words": normal(words, wide),
        "places": normal(length, wide),
        "blocks": blocks,
        "scores": normal(wide, words),
    }
    mask = jnp.tril(jnp.ones((length, length), bool))

    def norm(x: jax.Array, gain: jax.Array) -> jax.Array:
        return gain * x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)

    def block(b: Any, x: jax.Array) -> jax.Array:
        parts = jnp.split(norm(x, b["gains"][0]) @ b["qkv"], 3, -1)
        q, k, v = (p.reshape(*p.shape[:-1], heads, -1) for p in parts)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
        attention = jax.nn.softmax(jnp.where(mask, scores, -1e9))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", attention, v).reshape(x.shape)
        x = x + mixed @ b["out"]
        return x + jax.nn.gelu(norm(x, b["gains"][1]) @ b["up"]) @ b["down"]

    def losses(p: Any, batch: Any) -> jax.Array:
        x = p["words"][batch["t"][:, :-1]] + p["places"]
        for b in p["blocks"]:
            x = block(b, x)
        scores, labels = x @ p["scores"], batch["t"][:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean(-1)

    def inner(params: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
        weights = jax.nn.sigmoid(ctx["weights"].params[batch["i"]])
        return jnp.mean(weights * losses(params, batch))

    def batches(count: int) -> dict[str, jax.Array]:
        shape = (count, rows, length + 1)
        words_of = np.random.default_rng(0).integers(0, words, shape)
        index = jnp.arange(count * rows).reshape(count, rows)
        return {"t": jnp.asarray(words_of), "i": index}

    start = jnp.zeros(steps * rows)
    engine = pair(start, params, inner, losses, method, steps)
    return engine, {"weights": batches(1), "fit": batches(steps)}


def pair(
    start: jax.Array, params: Any, inner: Any, losses: Any, method: Any, steps: int
) -> mlox.Engine:
    """Return weights over a model that is trained by Adam."""
    weights = mlox.Problem.create(
        name="weights",
        params=start,
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: jnp.mean(losses(ctx.fit.params, batch)),
    )
    fit = mlox.Problem.create(
        name="fit",
        params=params,
        tx=optax.adam(1e-3, eps_root=1e-16),
        loss_fn=inner,
        method=method,
        unroll_steps=steps,
    )
    edges = {"weights": ["fit"]}, {"fit": ["weights"]}
    return mlox.Engine([weights, fit], *edges)


def measure(
    make: Callable[[Any, int], Job], methods: Mapping[str, Any], steps: int, run: bool
) -> None:
    """Print a table of the methods."""
    programs: dict[str, tuple[Any, Any]] = {}
    for name, method in methods.items():
        engine, batches = make(method, steps)
        slope = jax.jit(lambda s, b, e=engine: e.hypergradient(s, b, "weights"))
        compiled = slope.lower(engine.init(), batches).compile()
        programs[name] = compiled, (engine.init(), batches)
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(3 if run else 0):
        for name, (compiled, args) in programs.items():
            start = time.process_time()
            jax.block_until_ready(compiled(*args))
            times[name].append(time.process_time() - start)
    rows = [
        [
            name,
            f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:.0f} MiB",
            f"{statistics.median(times[name]):.2f} s" if run else "",
        ]
        for name, (compiled, _) in programs.items()
    ]
    print(f"\n{make.__name__}, {steps} steps of Adam\n")
    print(_timing.table(["method", "temporaries", "CPU time"], rows))


def main() -> None:
    """Measure the network and the transformer."""
    parser = argparse.ArgumentParser(description="Memory of long inner loops")
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--run", action="store_true", help="measure times, too")
    given = parser.parse_args()
    levels = {f"levels={n}": mlox.Unrolled(levels=n) for n in range(5)}
    loops = {**levels, "Forward()": mlox.Forward()}
    measure(network, loops, given.steps, given.run)
    modes = {f"mixed={x}": mlox.Unrolled(mixed=x) for x in (False, True, None)}
    measure(transformer, modes, 4, given.run)


if __name__ == "__main__":
    main()
