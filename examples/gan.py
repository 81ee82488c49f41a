"""Train a small GAN on a ring of eight Gaussians: as a game, and looking ahead.

The generator g maps noise to points of the plane, and the discriminator d tells them
from data. With the cross entropy L of the discriminator, the game is

    min over d   L(g, d)            max over g   L(g, d)

"simultaneous": both step at once, and each takes the other one as a constant. These are
plain reads in both directions, Engine(reads=). "alternating": the discriminator steps
first, and the generator sees it after its step. "unrolled": the generator is an upper
problem, whose gradient also flows through the 5 steps of the discriminator that it
looks ahead (`mlox.Unrolled`), and of which the first one is kept (`roll_back=True`):
Metz et al., Unrolled Generative Adversarial Networks, ICLR 2017.

All seeds are trained at once, by `jax.vmap` over the engine.

    pip install "mlox[examples]"
    python examples/gan.py
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import mlox

matplotlib.use("Agg")  # write a file without opening a window
import matplotlib.pyplot as plt

MODES, SPREAD, BATCH, NOISE, AHEAD, RATE = 8, 0.05, 64, 16, 5, 0.1
WAYS, LOOKS = ("simultaneous", "alternating", "unrolled"), 4
ANGLES = 2 * jnp.pi * jnp.arange(MODES) / MODES
CENTERS = 2 * jnp.stack([jnp.cos(ANGLES), jnp.sin(ANGLES)], axis=1)
NOTHING = {"generator": None, "discriminator": None}  # both sample their batches


def network(activation: Any, outputs: int) -> nn.Sequential:
    layers = [nn.Dense(32), activation, nn.Dense(32), activation, nn.Dense(outputs)]
    return nn.Sequential(layers)


generator, discriminator = network(nn.tanh, 2), network(nn.relu, 1)


def draw(params: Any, ctx: mlox.Context) -> tuple[jax.Array, jax.Array]:
    """Draw noise, and points of the ring."""
    rng: Any = ctx.rng
    keys = jax.random.split(rng, 3)
    modes = jax.random.randint(keys[0], (BATCH,), 0, MODES)
    points = CENTERS[modes] + SPREAD * jax.random.normal(keys[1], (BATCH, 2))
    return jax.random.normal(keys[2], (BATCH, NOISE)), points


def entropy(fake: Any, real: jax.Array, judge: Any) -> jax.Array:
    """Return the cross entropy of a discriminator."""
    return (nn.softplus(judge(fake)) + nn.softplus(-judge(real))).mean()


def judge_loss(params: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
    noise, points = batch
    return entropy(
        ctx.generator(noise), points, lambda x: discriminator.apply(params, x)
    )


def fool_loss(params: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
    noise, points = batch
    return -entropy(generator.apply(params, noise), points, ctx.discriminator)


def build(way: str, key: Any) -> mlox.Engine:
    keys = jax.random.split(key)
    g = mlox.Problem.create(
        name="generator",
        params=generator.init(keys[0], jnp.ones((1, NOISE))),
        tx=optax.adam(1e-3, b1=0.5),
        loss_fn=fool_loss,
        apply_fn=generator.apply,
        sample=draw,
        rng=0,
    )
    d = mlox.Problem.create(
        name="discriminator",
        params=discriminator.init(keys[1], jnp.ones((1, 2))),
        tx=optax.sgd(RATE),
        loss_fn=judge_loss,
        apply_fn=discriminator.apply,
        method=mlox.Unrolled(),
        unroll_steps=AHEAD if way == "unrolled" else 1,
        sample=draw,
        rng=1,
    )
    if way == "simultaneous":
        return mlox.Engine([g, d], reads={g: [d], d: [g]})
    if way == "alternating":  # along the edge the generator sees d after its step
        return mlox.Engine([g, d], l2u={d: [g]}, reads={d: [g]})
    return mlox.Engine([g, d], u2l={g: [d]}, l2u={d: [g]}, roll_back=True)


def train(way: str, seeds: int, cycles: int) -> np.ndarray:
    """Return points of the generators at some times, [times, seeds, points, 2]."""
    engine = build(way, jax.random.key(0))
    noise = jax.random.normal(jax.random.key(7), (2000, NOISE))

    def start(seed: Any) -> Any:
        state, key = engine.init(), jax.random.key(seed)
        g, d = state["generator"], state["discriminator"]
        keys = jax.random.split(key, 4)
        return {
            "generator": g.replace(
                params=generator.init(keys[0], noise[:1]), rng=keys[1]
            ),
            "discriminator": d.replace(
                params=discriminator.init(keys[2], jnp.ones((1, 2))), rng=keys[3]
            ),
        }

    def cycle(states: Any, _: None) -> Any:
        return jax.vmap(lambda state: engine.step(state, NOTHING)[0])(states), None

    run = jax.jit(lambda x: jax.lax.scan(cycle, x, None, length=cycles // LOOKS)[0])
    states, found = jax.vmap(start)(jnp.arange(seeds)), []
    for _ in range(LOOKS):
        states = run(states)
        points: Any = jax.vmap(generator.apply, (0, None))(
            states["generator"].params, noise
        )
        found.append(np.asarray(points))
    return np.stack(found)


def modes_of(points: np.ndarray) -> int:
    """Count the modes that have 1 % of the points within 4 standard deviations."""
    distances = np.linalg.norm(points[:, None] - CENTERS, axis=2)
    return int(((distances < 4 * SPREAD).mean(axis=0) > 0.01).sum())


def picture(found: dict[str, np.ndarray], cycles: int, file: str) -> None:
    """Draw the points of the first seed: a row for each way, a column for each time."""
    figure, rows = plt.subplots(
        len(found),
        LOOKS,
        figsize=(9, 7),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for axes, (way, times) in zip(rows, found.items(), strict=True):
        axes[0].set_ylabel(way)
        for i, (ax, points) in enumerate(zip(axes, times[:, 0], strict=True)):
            ax.scatter(*CENTERS.T, s=60, facecolors="none", edgecolors="tab:orange")
            ax.scatter(*points.T, s=1, alpha=0.3, color="tab:blue")
            ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])
            ax.set_title(
                f"{cycles * (i + 1) // LOOKS} steps, modes: {modes_of(points)}"
            )
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small GAN with mlox.")
    parser.add_argument("--cycles", type=int, default=2000, help="a multiple of 4")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="gan.png", help="the picture")
    args = parser.parse_args()
    found = {way: train(way, args.seeds, args.cycles) for way in WAYS}
    times = [args.cycles * (i + 1) // LOOKS for i in range(LOOKS)]
    print(f"modes that are covered, of {MODES}, after {times} steps of the generator")
    for way, points in found.items():
        modes = np.array([[modes_of(one) for one in seeds] for seeds in points])
        cells = zip(modes.mean(axis=1), modes.std(axis=1), strict=True)
        print(f"{way:14} " + "   ".join(f"{m:.1f} ± {s:.1f}" for m, s in cells))
    picture(found, args.cycles, args.out)


if __name__ == "__main__":
    main()
