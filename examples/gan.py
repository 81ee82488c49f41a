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

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _program import parsed, parser, print_table
from _ring import MODES, NOISE, draw, modes_of, picture

import mlox

AHEAD = 5
WAYS, LOOKS = ("simultaneous", "alternating", "unrolled"), 2
RATES = (0.03, 0.1, 0.3)  # of the discriminator, chosen for each way on other seeds
NOTHING = {"generator": None, "discriminator": None}  # both sample their batches


def network(activation: Any, outputs: int) -> nn.Sequential:
    layers = [nn.Dense(32), activation, nn.Dense(32), activation, nn.Dense(outputs)]
    return nn.Sequential(layers)


generator, discriminator = network(nn.tanh, 2), network(nn.relu, 1)


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


def build(way: str, rate: float, key: Any) -> mlox.Engine:
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
        tx=optax.sgd(rate),
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


def train(way: str, rate: float, seeds: Any, cycles: int) -> np.ndarray:
    """Return points of the generators at some times, [times, seeds, points, 2]."""
    engine = build(way, rate, jax.random.key(0))
    noise = jax.random.normal(jax.random.key(7), (1000, NOISE))

    def start(seed: Any) -> Any:
        state, key = engine.init(), jax.random.key(seed)
        keys = jax.random.split(key, 4)
        g = generator.init(keys[0], noise[:1])
        d = discriminator.init(keys[2], jnp.ones((1, 2)))
        return {
            "generator": state["generator"].replace(params=g, rng=keys[1]),
            "discriminator": state["discriminator"].replace(params=d, rng=keys[3]),
        }

    def cycle(states: Any, _: None) -> Any:
        return jax.vmap(lambda state: engine.step(state, NOTHING)[0])(states), None

    run = jax.jit(lambda x: jax.lax.scan(cycle, x, None, length=cycles // LOOKS)[0])
    states, found = jax.vmap(start)(jnp.asarray(seeds)), []
    for _ in range(LOOKS):
        states = run(states)
        points: Any = jax.vmap(generator.apply, (0, None))(
            states["generator"].params, noise
        )
        found.append(np.asarray(points))
    return np.stack(found)


def main() -> None:
    options = parser("Train a small GAN with mlox.")
    options.add_argument("--cycles", type=int, default=2000, help="a multiple of 2")
    args = parsed(options, seeds=10, cycles=10_000)
    found, modes, others = {}, {}, range(100, 100 + args.seeds)
    count = lambda looks: [[modes_of(points) for points in seeds] for seeds in looks]
    for way in WAYS:
        score = lambda rate, way=way: np.mean(
            count(train(way, rate, others, args.cycles))
        )
        rate = max(RATES, key=score)
        found[way] = train(way, rate, range(args.seeds), args.cycles)
        modes[f"{way}, rate {rate}"] = np.array(count(found[way]))
    runs = [{k: m[:, i] for k, m in modes.items()} for i in range(args.seeds)]
    print(f"modes that are covered, of {MODES}; the rate is chosen on other seeds")
    after = [f"{args.cycles * (i + 1) // LOOKS} steps" for i in range(LOOKS)]
    print_table(["", *after], runs, width=26)
    picture(found, args.cycles, args.out)


if __name__ == "__main__":
    main()
